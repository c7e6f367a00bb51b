"""Gradient times input."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.gradient_importance import (
    Target,
    gradient_needs,
    input_gradient,
    without_last,
)
from lit_tidpo.structures import Results


class GradientTimesInputImportance(ImportanceEstimator):
    """Absolute scalar product of each token's gradient with its embedding (arXiv 1605.01713).

    That is what the target would lose, to first order, if the embedding were zero.

    Args:
        target: As of :class:`~lit_tidpo.importance.gradient_importance.GradientImportance`.
        model: Whose gradient: the current ``policy``, the frozen ``reference``, or a further model.
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
        """Embeddings of the attributed model and what the target is made of."""
        return gradient_needs(self.model, self.target)

    def scores(self, results: Results) -> Tensor:
        """``|g_t . e_t|``, ``[N, T]``."""
        gradient = input_gradient(results, self.model, self.target, retain_graph=True)
        products = gradient * results[f"{self.model}.embeddings"].detach()
        scores: Tensor = products.float().sum(-1).abs()
        return without_last(scores, results.batch) if self.exclude_target else scores
