"""Tokens that are rare count for more."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.token_files import read_columns
from lit_tidpo.structures import Results


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
    (lists,) = read_columns("rarity.path", path, ("token_ids",))
    counts = torch.tensor(lists.flatten().to_pylist(), dtype=torch.long).bincount(minlength=1)
    return counts / counts.sum().clamp(min=1)
