"""Losses of single responses that are desirable or not."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext, Unit


class UnpairedLoss(LossComponent):
    """A loss of each response's log-ratio and label; of pairs the chosen ones are desirable.

    Attributes:
        weighted: Whether tokens count by their importance.
    """

    unit: Unit = "batch"
    weighted: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """The reference and labels, and the weights where they count."""
        return frozenset({"reference.logps", "labels"} | ({"weights"} if self.weighted else set()))

    def loss(self, context: LossContext) -> Tensor:
        """Mean over the responses of each prompt, ``[B]``."""
        rows = context.responses
        weights = rows["weights"] if self.weighted else None
        ratios = sequence_sum(rows.log_ratios, rows.mask, weights)
        values, present = rows.batch.by_prompt(self.values(context, ratios, rows["labels"]))
        return values.sum(-1) / present.sum(-1)

    @abstractmethod
    def values(self, context: LossContext, ratios: Tensor, labels: Tensor) -> Tensor:
        """Loss of each response.

        Args:
            context: Results by role, and where the run stands.
            ratios: Summed log-ratios in nats, ``[N]``.
            labels: Whether each response is desirable, ``[N]`` bool.

        Returns:
            ``[N]``.
        """


def mean_of_counted(context: LossContext, of_rows: Tensor) -> Tensor:
    """Mean over the rows of prompts that count, detached, ``[]``; 0 where there are none."""
    counted = context.responses.batch.of_rows(context.counted)
    values = torch.where(counted, of_rows.detach(), 0.0)
    return values.sum() / counted.sum().clamp(min=1)
