"""Triplet loss on a sampled anchor."""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.losses import response_distance, triplet_loss
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.structures import Results


class TripletLoss(LossComponent):
    """Pulls the policy's own sample towards chosen and away from rejected (TI-DPO, Eq. 4, 13).

    Args:
        margin: Distance in nats squared by which the rejected response must lie further away.
        mean: Average the squared differences over the shared positions instead of summing them, so
            that the length of a response does not set the scale.
    """

    needs = frozenset({"reference.logps", "anchor"})
    default_weight = 0.1  # gamma of Table B13

    def __init__(self, margin: float = 1.0, mean: bool = False) -> None:
        if not isfinite(margin):
            raise InputError(f"margin={margin}: expected a finite number")
        self.margin = margin
        self.mean = mean

    def loss(self, context: LossContext) -> Tensor:
        """``max(0, D(y, y_w) - D(y, y_l) + margin)``, ``[B]``."""
        return triplet_loss(
            self._distance(context["anchor"], context["chosen"]),
            self._distance(context["anchor"], context["rejected"]),
            self.margin,
        )

    def _distance(self, anchor: Results, other: Results) -> Tensor:
        return response_distance(
            anchor.log_ratios, anchor.mask, other.log_ratios, other.mask, self.mean
        )
