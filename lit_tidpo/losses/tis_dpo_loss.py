"""DPO with token importance sampling."""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import contrast_factor
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class TISDPOLoss(DPOLoss):
    """DPO whose tokens count by what two contrasted models make of them (arXiv 2410.04350).

    A token of the chosen response has the factor ``exp(mu clamp(c, low, high))``, one of the
    rejected response ``exp(-mu clamp(c, low, high))``, where ``c`` is its log-prob under the
    positive less that under the negative model. The term of the weighted divergences, which the
    authors' code leaves out by default, is left out. The bounds were not checked against the paper;
    the authors' code now maps contrasts from -1.5 to 1.5 linearly to factors from 0.7 to 1.3.

    Args:
        positive: Name of the model, under ``model.models``, that is inclined to good responses.
        negative: Name of the model that is inclined to bad ones.
        mu: Strength of the factors.
        low: Least contrast that counts, in nats.
        high: Largest contrast that counts, in nats.
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance, too.
    """

    def __init__(
        self,
        positive: str = "positive",
        negative: str = "negative",
        mu: Scalar = 1.0,
        low: float = -0.5,
        high: float = 1.5,
        beta: Scalar = 0.1,
        weighted: bool = False,
    ) -> None:
        super().__init__(beta, weighted=weighted)
        if not (isfinite(low) and isfinite(high) and low < high):
            raise InputError(f"low={low}, high={high}: expected finite numbers, low below high")
        self.positive = positive
        self.negative = negative
        self.mu = mu
        self.low = low
        self.high = high

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of the two contrasted models, too."""
        return super().needs | {f"{self.positive}.logps", f"{self.negative}.logps"}

    def factors(self, context: LossContext, role: str) -> Tensor:
        """``exp(+-mu clamp(c, low, high))``, ``[B, T]``."""
        results = context[role]
        contrast: Tensor = results[f"{self.positive}.logps"] - results[f"{self.negative}.logps"]
        sign = 1 if role == "chosen" else -1
        return contrast_factor(contrast, sign * self.mu, self.low, self.high)
