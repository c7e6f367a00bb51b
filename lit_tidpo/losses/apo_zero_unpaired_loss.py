"""Anchored preference optimisation of single responses."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.base import LossContext, Unit
from lit_tidpo.losses.unpaired import UnpairedLoss
from lit_tidpo.schedules import Scalar


class APOZeroUnpairedLoss(UnpairedLoss):
    """APO-zero of responses with labels (arXiv 2408.06266, Eq. 7, as TRL's KTOTrainer has it).

    ``1 - sigmoid(beta s)`` of a desirable and ``sigmoid(beta s)`` of an undesirable response with
    the summed log-ratio ``s``: KTO whose reference point is 0. Of pairs it is half of ``apo_zero``.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    unit: Unit = "group"  # no response counts for another one

    def __init__(self, beta: Scalar = 0.1, weighted: bool = False) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted

    def values(self, context: LossContext, ratios: Tensor, labels: Tensor) -> Tensor:
        """Loss of each response, ``[N]``."""
        return torch.where(labels, -self.beta * ratios, self.beta * ratios).sigmoid()
