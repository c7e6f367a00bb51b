"""Scores of several estimators added up."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator
from lit_tidpo.importance.combining import check_several, relative_scores
from lit_tidpo.structures import Results


class MixtureImportance(CombinedImportance):
    """Convex combination of the scores of several estimators, each with mean 1 over the response.

    ``sum_k c_k I_k`` with ``c_k`` the shares. Mixed with ``uniform``, no token is left out.

    Args:
        estimators: Two or more.
        shares: One number for each estimator, 0 or more, of sum 1; None takes them alike.

    Raises:
        InputError: If the shares are none.
    """

    def __init__(
        self, estimators: list[ImportanceEstimator], shares: list[float] | None = None
    ) -> None:
        check_several(estimators)
        if shares is not None and not (
            len(shares) == len(estimators) and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
        ):
            raise InputError(
                f"shares={shares}: expected {len(estimators)} numbers of 0 or more, one for each "
                "estimator, of sum 1"
            )
        self.estimators = estimators
        self.shares = shares

    def scores(self, results: Results) -> Tensor:
        """The combination, zero off the response, ``[N, T]``."""
        found = relative_scores(self.estimators, results)
        shares = self.shares or [1 / len(self.estimators)] * len(self.estimators)
        mixed: Tensor = (found.new_tensor(shares)[:, None, None] * found).sum(0)
        return mixed
