"""Attention that each token receives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_tidpo.errors import InputError, check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results

Reduction = Literal["mean", "max"]


class AttentionImportance(ImportanceEstimator):
    """Attention that a token receives from the response's tokens.

    Models must run eager attention (``policy.attn_implementation: eager``): no other kernel hands
    its probabilities out.

    Args:
        layers: Layers to use, of those that have attention; negative numbers count from the last
            one; None uses all.
        heads: Heads to use in each layer; None uses all.
        reduction: ``mean`` or ``max`` over the chosen layers and heads.
        per_query: Divide by the number of response tokens that can see the token. Without it early
            tokens score higher for being visible to more.
        model: Whose attention: the current ``policy``, or the frozen ``reference``, or a
            further model.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        heads: list[int] | None = None,
        reduction: Reduction = "mean",
        per_query: bool = False,
        model: str = "policy",
    ) -> None:
        check_choice("reduction", reduction, Reduction)
        self.layers = layers
        self.heads = heads
        self.reduction = reduction
        self.per_query = per_query
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """Attention probabilities of the chosen model."""
        return frozenset({f"{self.model}.attentions"})

    def scores(self, results: Results) -> Tensor:
        """Received attention, ``[N, T]``.

        Raises:
            InputError: If a layer or head does not exist.
        """
        attentions = results[f"{self.model}.attentions"]
        queries = results.mask
        received = torch.cat(
            [self._received(layer, queries) for layer in self._chosen(attentions)], dim=1
        )  # [N, heads of all layers, T]
        if self.reduction == "mean":
            return received.mean(1)
        return received.amax(1)

    def _chosen(self, attentions: tuple[Tensor, ...]) -> list[Tensor]:
        _check_range("layers", self.layers, len(attentions))
        chosen = range(len(attentions)) if self.layers is None else self.layers
        return [attentions[layer].detach() for layer in chosen]

    def _received(self, attention: Tensor, queries: Tensor) -> Tensor:
        """Sum over the queries of one layer's ``[N, heads, T, T]``, ``[N, heads, T]``."""
        _check_range("heads", self.heads, attention.shape[1])
        if self.heads is not None:
            attention = attention[:, self.heads]
        received = attention.masked_fill(~queries[:, None, :, None], 0.0).float().sum(-2)
        if self.per_query:
            viewers = queries.flip(-1).cumsum(-1).flip(-1).clamp(min=1)
            received = received / viewers.unsqueeze(1)
        return received


def _check_range(name: str, chosen: list[int] | None, count: int) -> None:
    wrong = [index for index in chosen or [] if not -count <= index < count]
    if wrong:
        raise InputError(
            f"attention {name}={wrong}: the model has {count}, expected -{count}..{count - 1}"
        )
