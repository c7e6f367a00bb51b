"""Alignment via optimal transport, of unpaired responses."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.quantiles import QuantileLoss


class AOTUnpairedLoss(QuantileLoss):
    """DPO of sorted log-ratios, chosen against rejected (unpaired AOT, arXiv 2406.05882).

    ``-log sigmoid(beta (s_(i) - t_(i)))`` of the i-th smallest summed log-ratio ``s`` of the chosen
    and the i-th smallest ``t`` of the rejected responses of the batch.
    """

    def samples(self, context: LossContext) -> tuple[Tensor, Tensor]:
        """Log-ratios of chosen and rejected responses, ``[B]`` both."""
        return self.score(context, "chosen"), self.score(context, "rejected")
