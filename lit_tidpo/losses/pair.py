"""Losses that make one number of each response and compare the two."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lit_tidpo.functional.losses import sequence_mean, sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.losses.divergences import Divergence


class PairLoss(LossComponent):
    """A loss of the scores of the chosen and the rejected response.

    A score is the sum over the response's tokens of their log-ratio, or of their log-prob, each
    times a factor, if the loss has any, and times its importance weight, if the loss is weighted.
    A subclass sets what is not the usual, as class attributes or from its arguments, and implements
    :meth:`value`.

    Attributes:
        reference_free: Whether log-probs of the policy are summed, not log-ratios.
        weighted: Whether tokens count by their importance.
        length_normalised: Whether scores are divided by the number of the response's tokens.
        divergence: What becomes of a response's log-ratio; None leaves it.
    """

    reference_free: bool = False
    weighted: bool = False
    length_normalised: bool = False
    divergence: Divergence | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The reference and the weights, where they count; a subclass adds its own."""
        reference = frozenset() if self.reference_free else {"reference.logps"}
        return frozenset(reference | ({"weights"} if self.weighted else set()))

    def loss(self, context: LossContext) -> Tensor:
        """The value of the two scores, ``[B]``."""
        return self.value(self.score(context, "chosen"), self.score(context, "rejected"))

    @abstractmethod
    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Loss of each pair.

        Args:
            chosen: Scores of the chosen responses in nats, ``[B]``.
            rejected: Scores of the rejected responses in nats, ``[B]``.

        Returns:
            ``[B]``.
        """

    def factors(self, context: LossContext, role: str) -> Tensor | None:
        """Factor of each token of a role besides its importance, ``[B, T]``; None has none."""
        return None

    def score(self, context: LossContext, role: str) -> Tensor:
        """Score of each response of a role, ``[B]``."""
        results = context[role]
        values = results["policy.logps"] if self.reference_free else results.log_ratios
        weights = self.factors(context, role)
        if self.weighted:
            importance: Tensor = results["weights"]
            weights = importance if weights is None else weights * importance
        total = sequence_sum(values, results.mask, weights)
        if self.divergence is not None:
            total = self.divergence.score(total)
        if self.length_normalised:
            total = total / results.mask.sum(-1).clamp(min=1)
        return total

    def nll(self, context: LossContext, role: str = "chosen") -> Tensor:
        """Negative log-likelihood of each response of a role, per token, in nats, ``[B]``."""
        results = context[role]
        weights = results["weights"] if self.weighted else None
        return -sequence_mean(results["policy.logps"], results.mask, weights)
