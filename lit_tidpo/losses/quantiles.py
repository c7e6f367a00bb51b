"""Losses that compare sorted values of a batch."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lit_tidpo.errors import check_positive, check_share
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.base import LossContext, Unit
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class QuantileLoss(PairLoss):
    """DPO of the quantiles of two samples: the larger the batch, the nearer to their distributions.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        label_smoothing: Probability that a label is wrong, at most 1.
        weighted: Weigh tokens by their importance.
    """

    unit: Unit = "batch"
    alone = "one value has no distribution, so that it is then dpo"

    def __init__(
        self, beta: Scalar = 0.01, label_smoothing: Scalar = 0.0, weighted: bool = False
    ) -> None:
        check_positive("beta", beta)
        check_share("label_smoothing", label_smoothing)
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.weighted = weighted

    @abstractmethod
    def samples(self, context: LossContext) -> tuple[Tensor, Tensor]:
        """What is to be larger, and what smaller, ``[B]`` both."""

    def loss(self, context: LossContext) -> Tensor:
        """Mean of the losses of the quantiles, ``[]``."""
        counted = context.counted
        larger, smaller = (sample[counted].sort().values for sample in self.samples(context))
        return self.value(larger, smaller).sum() / counted.sum().clamp(min=1)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Loss of each quantile, ``[B]``."""
        return dpo_loss(chosen - rejected, self.beta, self.label_smoothing)
