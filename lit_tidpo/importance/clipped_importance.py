"""Scores with a ceiling."""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import clip_weights
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.structures import Results


class ClippedImportance(CombinedImportance):
    """Scores of the response cut off at a multiple of their row's mean.

    What is left is scaled again, so that the other tokens gain.

    Args:
        estimator: Scores the tokens; gradient attribution by default.
        limit: Largest score that stays, in units of the mean before it is cut, 1 or more.
    """

    def __init__(self, estimator: ImportanceEstimator | None = None, limit: float = 4.0) -> None:
        if not (limit >= 1 and isfinite(limit)):
            raise InputError(f"limit={limit}: expected a finite number of 1 or more")
        self.estimator = GradientImportance() if estimator is None else estimator
        self.limit = limit

    def scores(self, results: Results) -> Tensor:
        """``min(I, limit * mean I)``, zero off the response, ``[N, T]``."""
        return clip_weights(checked_scores(self.estimator, results), results.mask, self.limit)
