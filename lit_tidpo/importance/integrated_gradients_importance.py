"""Integrated gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import InputError, check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.gradient_importance import (
    Target,
    gradient_needs,
    input_gradient,
    without_last,
)
from lit_tidpo.structures import Results


class IntegratedGradientsImportance(ImportanceEstimator):
    """Integrated gradients of the response (arXiv 1703.01365) on the current policy.

    The mean gradient at some points of the straight path from zero embeddings of the response to
    its own (middle Riemann sum), times the embedding. Signed attributions add up to what the target
    changes along the path; scores are their absolute values. Each point runs the policy once more.

    Args:
        steps: Points of the path.
        target: As of :class:`~lit_tidpo.importance.gradient_importance.GradientImportance`.
        exclude_target: Leave out the last token of each row.
    """

    def __init__(
        self, steps: int = 16, target: Target = "max_logit", exclude_target: bool = False
    ) -> None:
        if steps < 1:
            raise InputError(f"steps={steps}: expected 1 or more")
        check_choice("target", target, Target)
        self.steps = steps
        self.target = target
        self.exclude_target = exclude_target

    @property
    def needs(self) -> frozenset[str]:
        """Embeddings, what the target is made of, and further runs of the policy."""
        return gradient_needs("policy", self.target) | {"policy.scaled"}

    def scores(self, results: Results) -> Tensor:
        """Absolute attributions, ``[N, T]``."""
        embeddings = results["policy.embeddings"].detach()
        total = torch.zeros_like(embeddings)
        for step in range(self.steps):
            scaled = results["policy.scaled"]((step + 0.5) / self.steps)
            total += input_gradient(scaled, "policy", self.target)
        scores: Tensor = (total / self.steps * embeddings).float().sum(-1).abs()
        return without_last(scores, results.batch) if self.exclude_target else scores
