"""Anchored preference optimisation towards better responses."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class APOZeroLoss(PairLoss):
    """Raises chosen and lowers rejected log-ratios (APO-zero, arXiv 2408.06266, Eq. 7).

    ``1 - sigmoid(beta s_w) + sigmoid(beta s_l)`` of the summed log-ratios ``s``: for chosen
    responses that are better than what the policy writes.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.1, weighted: bool = False) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``1 - sigmoid(beta s_w) + sigmoid(beta s_l)``, ``[B]``."""
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()
