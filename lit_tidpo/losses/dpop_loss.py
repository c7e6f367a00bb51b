"""DPO-positive."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class DPOPLoss(PairLoss):
    """DPO that keeps the chosen response as likely as it was (Smaug, arXiv 2402.13228, Eq. 3).

    ``-log sigmoid(beta (m - penalty max(0, -s_w)))`` with the margin ``m`` and the summed
    log-ratio ``s_w`` of the chosen response.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        penalty: The paper's ``lambda``, 0 or more.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.3, penalty: Scalar = 50.0, weighted: bool = False) -> None:
        check_positive("beta", beta)
        check_not_negative("penalty", penalty)
        self.beta = beta
        self.penalty = penalty
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``-log sigmoid(beta (m - penalty max(0, -s_w)))``, ``[B]``."""
        return dpo_loss(chosen - rejected - self.penalty * (-chosen).relu(), self.beta)
