"""Scores of several estimators multiplied."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator
from lit_tidpo.importance.combining import check_several, relative_scores
from lit_tidpo.structures import Results


class ProductImportance(CombinedImportance):
    """Product of the scores of several estimators, each with mean 1 over the response.

    A token counts where it counts for all.

    Args:
        estimators: Two or more.
    """

    def __init__(self, estimators: list[ImportanceEstimator]) -> None:
        check_several(estimators)
        self.estimators = estimators

    def scores(self, results: Results) -> Tensor:
        """Products, zero off the response, ``[N, T]``."""
        return relative_scores(self.estimators, results).prod(0)
