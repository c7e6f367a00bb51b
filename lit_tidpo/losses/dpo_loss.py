"""Plain DPO."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.losses import dpo_loss, sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext


class DPOLoss(LossComponent):
    """Direct preference optimisation (arXiv 2305.18290, Eq. 7): every token weighs alike.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
    """

    needs = frozenset({"reference.logps"})

    def __init__(self, beta: float = 0.1) -> None:
        check_positive("beta", beta)
        self.beta = beta

    def loss(self, context: LossContext) -> Tensor:
        """``-log sigmoid(beta (sum_t d_t(y_w) - sum_t d_t(y_l)))``, ``[B]``."""
        chosen, rejected = context["chosen"], context["rejected"]
        margin = sequence_sum(chosen.log_ratios, chosen.mask) - sequence_sum(
            rejected.log_ratios, rejected.mask
        )
        return dpo_loss(margin, self.beta)
