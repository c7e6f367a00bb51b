"""Tokens that are rare count for more."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lit_tidpo.errors import InputError, check_positive, explained
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results

_COLUMN = "token_ids"


class RarityImportance(ImportanceEstimator):
    """Smooth inverse frequency ``a / (a + f)`` of each token (Arora et al., ICLR 2017, Eq. 3).

    ``f`` is the token's share of the tokens in a file, such as ``predict`` writes: one that is not
    there scores 1, one that is much more frequent than ``a`` hardly counts.

    Args:
        path: A ``.jsonl`` or ``.parquet`` file with a column ``token_ids``.
        smoothing: ``a``, above 0.

    Raises:
        InputError: If there is no such file or column.
    """

    def __init__(self, path: str, smoothing: float = 1e-3) -> None:
        check_positive("smoothing", smoothing)
        self.path = path
        self.smoothing = smoothing
        self._shares = _shares(path)

    def scores(self, results: Results) -> Tensor:
        """Inverse frequencies of all tokens, ``[N, T]``."""
        ids = results.batch.input_ids
        shares = self._shares.to(ids.device)
        known = shares[ids.clamp(max=len(shares) - 1)].masked_fill(ids >= len(shares), 0.0)
        return self.smoothing / (self.smoothing + known)


def _shares(path: str) -> Tensor:
    """Share of each token id in a file, as many as its highest id asks for."""
    import pyarrow.json
    import pyarrow.parquet

    file = Path(path).expanduser()
    readers = {".jsonl": pyarrow.json.read_json, ".parquet": pyarrow.parquet.read_table}
    if file.suffix not in readers or not file.is_file():
        raise InputError(
            f"path={path!r} of the rarity: expected a .jsonl or .parquet file that predict wrote"
        )
    with explained(f"path={path!r} of the rarity cannot be read"):
        table = readers[file.suffix](file)
        if _COLUMN not in table.column_names:
            raise InputError(f"expected a column {_COLUMN!r}; it has {table.column_names}")
        lists = table[_COLUMN].combine_chunks()
        counts = torch.tensor(lists.flatten().to_pylist(), dtype=torch.long).bincount(minlength=1)
    return counts / counts.sum().clamp(min=1)
