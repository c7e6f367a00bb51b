"""Other scores for chosen and rejected responses."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.structures import Results

_BEST = ("chosen", "response_1")


class PerRoleImportance(CombinedImportance):
    """One estimator for the chosen response, another one for the rejected.

    In groups the best one, ``response_1``, is the chosen, and all others are rejected; of single
    responses with a label the desirable ones are the chosen.

    Args:
        chosen: Scores the chosen responses.
        rejected: Scores all others.
    """

    def __init__(self, chosen: ImportanceEstimator, rejected: ImportanceEstimator) -> None:
        self.chosen = chosen
        self.rejected = rejected

    def scores(self, results: Results) -> Tensor:
        """Scores of each row by the estimator of its role, ``[N, T]``."""
        scores = checked_scores(self.rejected, results)
        chosen = results.batch.desirable if len(results.batch.roles) == 1 else None
        if chosen is None:
            chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
            for role in set(_BEST).intersection(results.batch.roles):
                chosen[results.batch.rows(role)] = True
        return torch.where(chosen[:, None], checked_scores(self.chosen, results), scores)
