"""DPO with temporal decay."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_share
from lit_tidpo.functional.losses import response_positions
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class D2POLoss(DPOLoss):
    """DPO in which earlier tokens count more (D2PO, arXiv 2502.14340).

    The token at position ``t`` of a response, from 0, has the factor ``gamma ** t``. The authors'
    code counts from 1, which is a ``beta`` smaller by the factor ``gamma``.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        gamma: Decay from token to token, 0 to 1; at 1 it is DPO.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.1, gamma: Scalar = 0.98, weighted: bool = False) -> None:
        super().__init__(beta, weighted=weighted)
        check_share("gamma", gamma)
        self.gamma = gamma

    def factors(self, context: LossContext, role: str) -> Tensor:
        """``gamma ** t``, ``[B, T]``."""
        results = context[role]
        positions = response_positions(results.mask).clamp(min=0).to(results["policy.logps"])
        return self.gamma**positions
