"""Alignment via optimal transport, of pairs."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.quantiles import QuantileLoss


class AOTLoss(QuantileLoss):
    """DPO of sorted margins, the policy's against the reference's (paired AOT, arXiv 2406.05882).

    ``-log sigmoid(beta (m_(i) - n_(i)))`` of the i-th smallest margin ``m`` of log-probs under the
    policy and the i-th smallest ``n`` under the reference.
    """

    def samples(self, context: LossContext) -> tuple[Tensor, Tensor]:
        """Margins of log-probs under policy and reference, ``[B]`` both."""
        return self._margin(context, "policy.logps"), self._margin(context, "reference.logps")

    def _margin(self, context: LossContext, need: str) -> Tensor:
        chosen, rejected = (
            sequence_sum(each[need], each.mask, each["weights"] if self.weighted else None)
            for each in (context["chosen"], context["rejected"])
        )
        return chosen - rejected
