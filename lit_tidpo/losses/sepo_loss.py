"""Selective preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.selected import SelectedLoss
from lit_tidpo.schedules import Scalar


class SePOLoss(SelectedLoss):
    """SimPO of the tokens that an oracle finds decisive (SePO, arXiv 2408.13518).

    ``-log sigmoid(beta (p_w - p_l) - margin)`` of the mean log-probs ``p`` of the selected tokens:
    the best of the chosen and the worst of the rejected response by their reward ``log(oracle /
    reference)``, where the oracle is a small model trained by DPO.

    Args:
        beta: Scale of the mean log-probs, above 0.
        margin: Target margin, 0 or more.
        share: Share of the tokens of a response that are selected, above 0 to 1, one at the least.
        oracle: Name of the oracle, under ``model.models``.
        weighted: Weigh tokens by their importance, too.
    """

    def __init__(
        self,
        beta: Scalar = 1.0,
        margin: Scalar = 0.0,
        share: float = 0.3,
        oracle: str = "oracle",
        weighted: bool = False,
    ) -> None:
        super().__init__(beta, margin, weighted=weighted)
        if not 0 < share <= 1:
            raise InputError(f"share={share}: expected a number above 0 to 1")
        self.share = share
        self.oracle = oracle

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of the oracle and its reference."""
        return super().needs | {"reference.logps", f"{self.oracle}.logps"}

    def selected(self, context: LossContext, role: str) -> Tensor:
        """Tokens of the highest reward, of the rejected response of the lowest, ``[B, T]``."""
        results = context[role]
        reward: Tensor = results[f"{self.oracle}.logps"] - results["reference.logps"]
        reward = reward if role == "chosen" else -reward
        best_first = reward.masked_fill(~results.mask, -torch.inf).argsort(-1, descending=True)
        wanted = (self.share * results.mask.sum(-1, keepdim=True)).floor().clamp(min=1)
        return best_first.argsort(-1) < wanted
