"""Scores drawn together or apart."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.importance import temper_scores
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.structures import Results


class TemperedImportance(CombinedImportance):
    """Scores of the response to a power, in units of the largest of their row.

    Args:
        estimator: Scores the tokens; gradient attribution by default.
        power: Above 0: below 1 draws the tokens of a row together, above 1 apart.
    """

    def __init__(self, estimator: ImportanceEstimator | None = None, power: float = 0.5) -> None:
        check_positive("power", power)
        self.estimator = GradientImportance() if estimator is None else estimator
        self.power = power

    def scores(self, results: Results) -> Tensor:
        """``(I / max I) ** power``, zero off the response, ``[N, T]``."""
        return temper_scores(checked_scores(self.estimator, results), results.mask, self.power)
