"""The tokens in which the responses of a prompt differ."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.edits import changed
from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class DifferenceImportance(ImportanceEstimator):
    """1 for tokens that an edit of the one response into the other takes away or puts in.

    The edit is that of :func:`lit_tidpo.edits.changed` over token ids. Among several responses a
    token's score is the mean over the other ones of its prompt; where there is none, and where
    nothing differs, all tokens are alike.

    Args:
        background: Score of the tokens that stay, 0 to 1.
    """

    looks_at = "group"

    def __init__(self, background: float = 0.1) -> None:
        if not 0 <= background <= 1:
            raise InputError(f"background={background}: expected a number from 0 to 1")
        self.background = background

    def scores(self, results: Results) -> Tensor:
        """Scores, zero off the response, ``[N, T]``."""
        mask = results.mask.cpu()
        responses = [
            ids[own].tolist() for ids, own in zip(results.batch.input_ids.cpu(), mask, strict=True)
        ]
        found: list[list[Tensor]] = [[] for _ in responses]
        for pair in results.batch.pairs_of_rows():
            edit = changed(*(responses[row] for row in pair))
            for row, own in zip(pair, edit, strict=True):
                found[row].append(torch.where(torch.tensor(own), 1.0, self.background))
        scores = torch.zeros(mask.shape)
        for row, marks in enumerate(found):
            scores[row, mask[row]] = torch.stack(marks).mean(0) if marks else torch.tensor(1.0)
        return scores.to(results.mask.device)
