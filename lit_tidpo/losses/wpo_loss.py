"""Weighted preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.functional.losses import sequence_mean
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class WPOLoss(DPOLoss):
    """DPO of pairs that count by how likely the policy is to write them (arXiv 2406.11827, Eq. 2).

    ``-w_w w_l log sigmoid(beta m)`` of the margin ``m`` of log-ratios, with ``w = exp(mean_t(log
    p(y_t) - log sum_v p(v) ** 2))`` of each response, detached: its likelihood per token against
    that of a sampled response (the paper's sampled alignment).

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        aligned: Whether the second term, the sampled alignment, is there.
        weighted: Weigh tokens by their importance in the margin.
    """

    def __init__(self, beta: Scalar = 0.01, aligned: bool = True, weighted: bool = False) -> None:
        super().__init__(beta, weighted=weighted)
        self.aligned = aligned

    @property
    def needs(self) -> frozenset[str]:
        """The policy's collision probabilities, too, where they count."""
        return super().needs | ({"policy.log_collision"} if self.aligned else set())

    def loss(self, context: LossContext) -> Tensor:
        """``-w_w w_l log sigmoid(beta m)``, ``[B]``."""
        likelihood = self._log_weight(context, "chosen") + self._log_weight(context, "rejected")
        return likelihood.exp() * super().loss(context)

    def _log_weight(self, context: LossContext, role: str) -> Tensor:
        results = context[role]
        logps: Tensor = results["policy.logps"].detach()
        if self.aligned:
            logps = logps - results["policy.log_collision"]
        return sequence_mean(logps, results.mask)
