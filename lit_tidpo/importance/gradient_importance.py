"""Gradient attribution on the input embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_tidpo.errors import check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import ResponseBatch, Results

Target = Literal["max_logit", "response_logp", "response_logits"]
Norm = Literal["l1", "l2"]

# What each target is made of.
_FIELDS: dict[Target, str] = {
    "max_logit": "final_logits",
    "response_logp": "logps",
    "response_logits": "label_logits",
}


class GradientImportance(ImportanceEstimator):
    """Norm of a target's gradient for each token's input embedding (arXiv 2505.19653, Eq. 5-6).

    The gradient comes from the graph of the training forward itself: no second forward, and no
    parameter's gradient is touched.

    Args:
        target: ``max_logit``: the largest logit at the last position (Eq. 5). ``response_logp``:
            the log-likelihood of the response. ``response_logits``: the sum of the logits of its
            tokens.
        norm: ``l1`` (Eq. 6) or ``l2``.
        model: Whose gradient: the current ``policy``, the frozen ``reference``, or a further model.
        exclude_target: Leave out the last token of each row: it attributes to itself, which takes a
            large share of the total.
    """

    def __init__(
        self,
        target: Target = "max_logit",
        norm: Norm = "l1",
        model: str = "policy",
        exclude_target: bool = False,
    ) -> None:
        check_choice("target", target, Target)
        check_choice("norm", norm, Norm)
        self.target = target
        self.norm = norm
        self.model = model
        self.exclude_target = exclude_target

    @property
    def needs(self) -> frozenset[str]:
        """Embeddings of the attributed model and what the target is made of."""
        return gradient_needs(self.model, self.target)

    def scores(self, results: Results) -> Tensor:
        """Norms of the gradients, zero at padding, ``[N, T]``."""
        gradient = input_gradient(results, self.model, self.target, retain_graph=True)
        scores = gradient_norm(gradient, self.norm)
        return without_last(scores, results.batch) if self.exclude_target else scores


def gradient_needs(model: str, target: Target) -> frozenset[str]:
    """What :func:`input_gradient` takes."""
    return frozenset({f"{model}.embeddings", f"{model}.{_FIELDS[target]}"})


def input_gradient(
    results: Results, model: str, target: Target, retain_graph: bool = False
) -> Tensor:
    """Gradient of a target for the input embeddings, ``[N, T, H]``.

    Args:
        results: What :func:`gradient_needs` names.
        model: Whose gradient.
        target: See :class:`GradientImportance`.
        retain_graph: Whether the graph is used again.
    """
    total, embeddings = target_sum(results, model, target), results[f"{model}.embeddings"]
    gradient: Tensor
    (gradient,) = torch.autograd.grad(total, embeddings, retain_graph=retain_graph)
    return gradient


def target_sum(results: Results, model: str, target: Target) -> Tensor:
    """Sum of the target over all rows, inside the graph, ``[]``."""
    quantity = results[f"{model}.{_FIELDS[target]}"]
    total: Tensor = (quantity.amax(-1) if target == "max_logit" else quantity).sum()
    return total


def gradient_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """Norm of each token's gradient ``[N, T, H]`` in fp32, ``[N, T]``."""
    order = 1 if norm == "l1" else 2
    norms: Tensor = torch.linalg.vector_norm(gradient.float(), order, dim=-1)
    return norms


def without_last(scores: Tensor, batch: ResponseBatch) -> Tensor:
    """Scores ``[N, T]`` with zero at the last token of each row."""
    return scores.scatter(-1, (batch.lengths - 1).unsqueeze(-1), 0.0)
