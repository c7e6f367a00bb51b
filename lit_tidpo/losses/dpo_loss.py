"""Plain DPO."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_tidpo.contracts import LossComponent
from lit_tidpo.functional.preference import dpo_loss, sequence_sum
from lit_tidpo.structures import TokenScores


class DPOLoss(LossComponent):
    """Direct preference optimisation (arXiv 2305.18290, Eq. 7): every token weighs alike."""

    needs = frozenset({"reference.logps"})

    def loss(self, scores: Mapping[str, TokenScores], beta: float) -> Tensor:
        """``-log sigmoid(beta (sum_t d_t(y_w) - sum_t d_t(y_l)))``, ``[B]``."""
        chosen, rejected = scores["chosen"], scores["rejected"]
        margin = sequence_sum(chosen.log_ratios, chosen.mask) - sequence_sum(
            rejected.log_ratios, rejected.mask
        )
        return dpo_loss(margin, beta)
