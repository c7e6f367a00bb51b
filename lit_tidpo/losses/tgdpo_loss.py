"""DPO with token-level reward guidance."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class TGDPOLoss(DPOLoss):
    """DPO whose tokens count by the rewards of a model trained before (TGDPO, arXiv 2506.14574).

    A token of the chosen response has the factor ``1 + alpha r``, one of the rejected response ``1
    - alpha r``, with its reward ``r = beta log(guide / reference)`` under the guiding model, one
    trained by DPO say.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        alpha: Strength of the guidance, 0 or more; at 0 it is DPO.
        guide: Name of the guiding model, under ``model.models``.
        weighted: Weigh tokens by their importance, too.
    """

    def __init__(
        self,
        beta: Scalar = 0.1,
        alpha: Scalar = 0.5,
        guide: str = "guide",
        weighted: bool = False,
    ) -> None:
        super().__init__(beta, weighted=weighted)
        check_not_negative("alpha", alpha)
        self.alpha = alpha
        self.guide = guide

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of the guiding model, too."""
        return super().needs | {f"{self.guide}.logps"}

    def factors(self, context: LossContext, role: str) -> Tensor:
        """``1 +- alpha r``, ``[B, T]``."""
        results = context[role]
        reward: Tensor = self.beta * (results[f"{self.guide}.logps"] - results["reference.logps"])
        return 1 + self.alpha * reward if role == "chosen" else 1 - self.alpha * reward
