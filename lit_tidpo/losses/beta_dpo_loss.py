"""DPO with a dynamic beta."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_tidpo.errors import check_not_negative, check_share
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.base import LossContext, LossValues, Unit
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar

_LEAST = 1e-3  # of the authors' code


class BetaDPOLoss(nn.Module, DPOLoss):
    """DPO whose ``beta`` follows the batch, and which leaves outliers out (arXiv 2407.08639).

    ``-log sigmoid(b m)`` of the margin ``m`` of log-ratios, with ``b = beta (1 + alpha (mean(m) -
    M))``, at least 0.001, and the moving average ``M`` of batch means. In training the mean and
    the loss are those of pairs drawn without replacement, each with the odds ``exp(-((m - M) / S)
    ** 2 / 2)``, where ``S`` is the moving average of standard deviations. Averages are of each
    rank's own.

    Args:
        beta: Inverse temperature to start from, per nat, above 0.
        alpha: How much the batch's mean margin changes it, 0 or more.
        momentum: How much of the moving averages is kept from batch to batch, 0 to less than 1.
        left_out: Share of the pairs that is left out, 0 to less than 1.
        weighted: Weigh tokens by their importance.
    """

    unit: Unit = "batch"
    quantities = ("beta",)
    average: Tensor
    spread: Tensor

    def __init__(
        self,
        beta: Scalar = 0.1,
        alpha: Scalar = 0.6,
        momentum: float = 0.9,
        left_out: float = 0.2,
        weighted: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        DPOLoss.__init__(self, beta, weighted=weighted)
        check_not_negative("alpha", alpha)
        check_share("momentum", momentum, 1, "at 1 the moving averages would never move")
        check_share("left_out", left_out, 1, "at 1 no pair of a batch would be left to train on")
        self.alpha = alpha
        self.momentum = momentum
        self.left_out = left_out
        self.alone = "of one pair none can be left out" if left_out else ""
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("spread", torch.zeros(()))

    def loss(self, context: LossContext) -> LossValues:  # type: ignore[override]  # more than a tensor
        """Mean over the pairs that were drawn, ``[]``."""
        margin = self.score(context, "chosen") - self.score(context, "rejected")
        margin = margin[context.counted]
        found = margin.detach()
        if self.training and len(found):
            self.average.lerp_(found.mean().to(self.average), 1 - self.momentum)
            self.spread.lerp_(
                found.std(correction=min(1, len(found) - 1)).to(self.spread), 1 - self.momentum
            )
            drawn = self._drawn(found)
            margin, found = margin[drawn], found[drawn]
        count = max(len(found), 1)
        moved = self.alpha * (found.sum() / count - self.average)
        beta = (self.beta * (1 + moved)).clamp(min=_LEAST)
        return LossValues(dpo_loss(margin, beta).sum() / count, {"beta": beta})

    def _drawn(self, margin: Tensor) -> Tensor:
        odds = (-((margin - self.average) / self.spread.clamp(min=1e-6)).square() / 2).exp()
        count = max(1, int(len(margin) * (1 - self.left_out)))
        return odds.clamp(min=1e-12).multinomial(count)
