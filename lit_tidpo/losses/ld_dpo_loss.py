"""Length-desensitised DPO."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_share
from lit_tidpo.functional.losses import response_positions
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class LDDPOLoss(DPOLoss):
    """DPO in which tokens beyond the shorter response's length count less (arXiv 2409.06411).

    A token has the factor 1 up to the length of the shorter response of the pair, ``alpha`` beyond
    it.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        alpha: Factor of the excess tokens, 0 to 1; at 1 it is DPO.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.1, alpha: Scalar = 0.5, weighted: bool = False) -> None:
        super().__init__(beta, weighted=weighted)
        check_share("alpha", alpha)
        self.alpha = alpha

    def factors(self, context: LossContext, role: str) -> Tensor:
        """1 up to the shared length, ``alpha`` beyond it, ``[B, T]``."""
        lengths = [context[each].mask.sum(-1, keepdim=True) for each in ("chosen", "rejected")]
        shared = torch.minimum(*lengths)
        beyond = response_positions(context[role].mask) >= shared
        return torch.ones_like(context[role]["policy.logps"]).masked_fill(beyond, self.alpha)
