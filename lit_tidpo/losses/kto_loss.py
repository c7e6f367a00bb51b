"""Kahneman-Tversky optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive
from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.unpaired import UnpairedLoss, mean_of_counted
from lit_tidpo.schedules import Scalar


class KTOLoss(UnpairedLoss):
    """Human utility of single responses (KTO, arXiv 2402.01306, Eq. 7-8).

    ``d (1 - sigmoid(beta (s - z)))`` of a desirable and ``u (1 - sigmoid(beta (z - s)))`` of an
    undesirable response with the summed log-ratio ``s``. The reference point ``z`` is the mean
    summed log-ratio of the batch's responses under the prompts before theirs, 0 at the least: an
    estimate of the divergence, without a gradient. In a batch of one prompt it is 0. It is each
    process's own, where TRL averages it over all.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        desirable_weight: ``d``, 0 or more.
        undesirable_weight: ``u``, 0 or more.
        weighted: Weigh tokens by their importance; those of ``z`` all count alike.
    """

    def __init__(
        self,
        beta: Scalar = 0.1,
        desirable_weight: Scalar = 1.0,
        undesirable_weight: Scalar = 1.0,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        check_not_negative("desirable_weight", desirable_weight)
        check_not_negative("undesirable_weight", undesirable_weight)
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self.weighted = weighted

    alone = (
        "its reference point, the mean over responses under other prompts of the batch, is then 0, "
        "as in apo_zero_unpaired"
    )

    @property
    def needs(self) -> frozenset[str]:
        """Responses under other prompts, too."""
        return super().needs | {"mismatched"}

    def values(self, context: LossContext, ratios: Tensor, labels: Tensor) -> Tensor:
        """Weighted disutility of each response, ``[N]``."""
        gain = self.beta * (ratios - self._reference_point(context))
        wanted = self.desirable_weight * (-gain).sigmoid()
        return torch.where(labels, wanted, self.undesirable_weight * gain.sigmoid())

    def _reference_point(self, context: LossContext) -> Tensor:
        others = context.mismatched
        assert others is not None
        sums = sequence_sum(others.log_ratios, others.mask)
        return mean_of_counted(context, sums if others.batch.size > 1 else 0 * sums).clamp(min=0)
