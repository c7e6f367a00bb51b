"""Triplet loss on a sampled anchor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_tidpo.contracts import LossComponent
from lit_tidpo.functional.triplet import response_distance, triplet_loss
from lit_tidpo.structures import TokenScores


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
        self.margin = margin
        self.mean = mean

    def loss(self, scores: Mapping[str, TokenScores], beta: float) -> Tensor:
        """``max(0, D(y, y_w) - D(y, y_l) + margin)``, ``[B]``."""
        return triplet_loss(
            self._distance(scores["anchor"], scores["chosen"]),
            self._distance(scores["anchor"], scores["rejected"]),
            self.margin,
        )

    def _distance(self, anchor: TokenScores, other: TokenScores) -> Tensor:
        return response_distance(
            anchor.log_ratios, anchor.mask, other.log_ratios, other.mask, self.mean
        )
