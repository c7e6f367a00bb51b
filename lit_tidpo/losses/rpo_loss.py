"""DPO with the likelihood of the chosen response."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class RPOLoss(DPOLoss):
    """DPO and the chosen response's likelihood (iterative RPO, arXiv 2404.19733, Eq. 1).

    ``-log sigmoid(beta m) - alpha p_w`` of the margin ``m`` of log-ratios and the mean log-prob
    ``p_w`` of the chosen response.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        alpha: Weight of the negative log-likelihood, 0 or more.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.1, alpha: Scalar = 1.0, weighted: bool = False) -> None:
        super().__init__(beta, weighted=weighted)
        check_not_negative("alpha", alpha)
        self.alpha = alpha

    def loss(self, context: LossContext) -> Tensor:
        """``-log sigmoid(beta m) - alpha p_w``, ``[B]``."""
        return super().loss(context) + self.alpha * self.nll(context)
