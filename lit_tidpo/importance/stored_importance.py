"""Scores that an earlier run wrote."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.token_files import read_columns
from lit_tidpo.models.kept_logps import row_keys
from lit_tidpo.structures import Results


class StoredImportance(ImportanceEstimator):
    """Scores from a file that ``predict`` wrote, computed once and shared by runs.

    Rows are found by their tokens, so that neither their order nor the split matters, and other
    data, another tokenizer or other lengths cannot be taken for them:
    ``lit-tidpo predict --data.predict_split train --tokens.path FILE`` writes those of a training
    split.

    Args:
        path: A ``.jsonl`` or ``.parquet`` file.
        column: Its column to take: the ``weights``, or the ``scores`` that they were made of.

    Raises:
        InputError: If there is no such file or column.
    """

    def __init__(self, path: str, column: str = "weights") -> None:
        self.path = path
        self.column = column
        keys, values = read_columns("stored.path", path, ("row", column))
        scores = (torch.tensor(each, dtype=torch.float32) for each in values.to_pylist())
        self._scores = dict(zip(keys.to_pylist(), scores, strict=True))

    def scores(self, results: Results) -> Tensor:
        """Stored scores, zero off the response, ``[N, T]``.

        Raises:
            InputError: If a row is not in the file.
        """
        found = torch.zeros(results.mask.shape)
        for row, (key, own) in enumerate(
            zip(row_keys(results.batch), results.mask.cpu(), strict=True)
        ):
            stored = self._scores.get(key.hex())
            if stored is None or len(stored) != int(own.sum()):
                raise InputError(
                    f"stored.path={self.path!r} has no {self.column} of a response to the prompt "
                    f"{self._prompt(results, row)} of the data set: let predict write those of the "
                    "same data, with the same tokenizer, template and lengths"
                )
            found[row, own] = stored
        return found.to(results.mask.device)

    def _prompt(self, results: Results, row: int) -> int:
        batch = results.batch
        return int(batch.of_rows(batch.index)[row])
