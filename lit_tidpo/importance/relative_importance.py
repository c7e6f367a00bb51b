"""Scores relative to those around them."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import relative_to_neighbours
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.structures import Results


class RelativeImportance(CombinedImportance):
    """Scores divided by the mean score of the response tokens around them.

    Takes out the course over positions, such as the nearness of a gradient's target.

    Args:
        estimator: Scores the tokens; gradient attribution by default.
        radius: Places to each side that count, 1 or more; the token itself counts, too.
        exclude_last: Leave the last token of each row out: it scores 0 and is nobody's neighbour.
    """

    def __init__(
        self,
        estimator: ImportanceEstimator | None = None,
        radius: int = 8,
        exclude_last: bool = False,
    ) -> None:
        if radius < 1:
            raise InputError(f"radius={radius}: expected 1 or more")
        self.estimator = GradientImportance() if estimator is None else estimator
        self.radius = radius
        self.exclude_last = exclude_last

    def scores(self, results: Results) -> Tensor:
        """Relative scores, zero off the response, ``[N, T]``."""
        counted = results.mask
        if self.exclude_last:
            counted = counted.scatter(-1, (results.batch.lengths - 1).unsqueeze(-1), False)
        scores = checked_scores(self.estimator, results)
        return relative_to_neighbours(scores, counted, self.radius)
