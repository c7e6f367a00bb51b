"""Gradient attribution of the log-ratio of policy and reference."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.gradient_importance import (
    Norm,
    gradient_needs,
    gradient_norm,
    input_gradient,
    without_last,
)
from lit_tidpo.structures import Results


class GradientLogRatioImportance(ImportanceEstimator):
    """Norm of the difference of two gradients: of the response's log-likelihood under the policy
    and under the reference, each for its own input embeddings.

    Args:
        norm: ``l1`` or ``l2``.
        exclude_target: Leave out the last token of each row.
    """  # noqa: D205

    def __init__(self, norm: Norm = "l1", exclude_target: bool = False) -> None:
        check_choice("norm", norm, Norm)
        self.norm = norm
        self.exclude_target = exclude_target

    @property
    def needs(self) -> frozenset[str]:
        """Embeddings and log-probs of both models."""
        return gradient_needs("policy", "response_logp") | gradient_needs(
            "reference", "response_logp"
        )

    def scores(self, results: Results) -> Tensor:
        """Norms of the differences, ``[N, T]``."""
        own, other = (
            input_gradient(results, model, "response_logp", retain_graph=True)
            for model in ("policy", "reference")
        )
        scores = gradient_norm(own - other, self.norm)
        return without_last(scores, results.batch) if self.exclude_target else scores
