"""Attention that matters to a target."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.gradient_importance import (
    Target,
    gradient_needs,
    target_sum,
    without_last,
)
from lit_tidpo.structures import Results


class GradientTimesAttentionImportance(ImportanceEstimator):
    """Received attention times its gradient, where that is positive (arXiv 2103.15679, Eq. 5).

    ``max(0, dy/dA * A)``, mean over layers and heads, summed over the response's tokens that look:
    attention that the target would miss. Models must run eager attention
    (``policy.attn_implementation: eager``).

    Args:
        target: As of :class:`~lit_tidpo.importance.gradient_importance.GradientImportance`.
        model: Whose attention: the current ``policy``, the frozen ``reference``, or a further
            model.
        exclude_target: Leave out the last token of each row.
    """

    def __init__(
        self, target: Target = "max_logit", model: str = "policy", exclude_target: bool = False
    ) -> None:
        check_choice("target", target, Target)
        self.target = target
        self.model = model
        self.exclude_target = exclude_target

    @property
    def needs(self) -> frozenset[str]:
        """Attention of the chosen model, inside a graph, and what the target is made of."""
        return gradient_needs(self.model, self.target) | {f"{self.model}.attentions"}

    def scores(self, results: Results) -> Tensor:
        """Attention received, weighed by its gradient, ``[N, T]``."""
        attentions = results[f"{self.model}.attentions"]
        gradients = torch.autograd.grad(
            target_sum(results, self.model, self.target), attentions, retain_graph=True
        )
        received = [
            (attention.detach() * gradient).float().clamp(min=0).mean(1)
            for attention, gradient in zip(attentions, gradients, strict=True)
        ]
        scores = torch.stack(received).mean(0).masked_fill(~results.mask.unsqueeze(-1), 0.0).sum(1)
        return without_last(scores, results.batch) if self.exclude_target else scores
