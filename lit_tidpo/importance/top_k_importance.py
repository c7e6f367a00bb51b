"""The highest scores alone."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import highest_scores
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.structures import Results


class TopKImportance(CombinedImportance):
    """Scores of the highest tokens of each response, 0 for all others; of like ones the earlier.

    Args:
        estimator: Scores the tokens; gradient attribution by default.
        share: Share of the response's tokens that is kept, above 0 and up to 1, rounded to one
            token or more.
        count: Tokens that are kept, in the place of a share.
        flat: Let the tokens that are kept count alike.

    Raises:
        InputError: If not one of ``share`` and ``count`` is given, or it is out of range.
    """

    def __init__(
        self,
        estimator: ImportanceEstimator | None = None,
        share: float | None = None,
        count: int | None = None,
        flat: bool = False,
    ) -> None:
        if (share is None) == (count is None):
            raise InputError(f"share={share} and count={count}: expected one of the two")
        if share is not None and not 0 < share <= 1:
            raise InputError(f"share={share}: expected a number above 0 and up to 1")
        if count is not None and count < 1:
            raise InputError(f"count={count}: expected 1 or more")
        self.estimator = GradientImportance() if estimator is None else estimator
        self.share = share
        self.count = count
        self.flat = flat

    def scores(self, results: Results) -> Tensor:
        """What is kept, ``[N, T]``."""
        scores, lengths = checked_scores(self.estimator, results), results.mask.sum(-1)
        if self.share is not None:
            counts = (self.share * lengths).round().clamp(min=1).long()
        else:
            counts = lengths.clamp(max=self.count)
        kept = highest_scores(scores, results.mask, counts)
        return kept.to(scores) if self.flat else scores.masked_fill(~kept, 0.0)
