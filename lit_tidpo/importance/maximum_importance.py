"""The largest of the scores of several estimators."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator
from lit_tidpo.importance.combining import check_several, relative_scores
from lit_tidpo.structures import Results


class MaximumImportance(CombinedImportance):
    """Largest of the scores of several estimators, each with mean 1 over the response.

    A token counts where it counts for one.

    Args:
        estimators: Two or more.
    """

    def __init__(self, estimators: list[ImportanceEstimator]) -> None:
        check_several(estimators)
        self.estimators = estimators

    def scores(self, results: Results) -> Tensor:
        """Maxima, zero off the response, ``[N, T]``."""
        return relative_scores(self.estimators, results).amax(0)
