"""Binary classifier optimisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.unpaired import UnpairedLoss, mean_of_counted
from lit_tidpo.schedules import Scalar


class BCOLoss(nn.Module, UnpairedLoss):
    """Desirable responses told from others by their reward, less its mean (arXiv 2404.04656).

    ``-log sigmoid(r - delta)`` of a desirable and ``-log sigmoid(delta - r)`` of an undesirable
    response with the reward ``r``, ``beta`` times its summed log-ratio, and ``delta``, the mean of
    the batches' mean rewards of this run so far (of each rank's own), which is saved with the
    policy.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    batches: Tensor
    average: Tensor

    def __init__(self, beta: Scalar = 0.01, weighted: bool = False) -> None:
        super().__init__()
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(()))

    def values(self, context: LossContext, ratios: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each response's label, ``[N]``."""
        rewards = self.beta * ratios
        if self.training:
            self.batches += 1
            mean = mean_of_counted(context, rewards).to(self.average)
            self.average += (mean - self.average) / self.batches
        return dpo_loss(torch.where(labels, 1, -1) * (rewards - self.average), 1.0)
