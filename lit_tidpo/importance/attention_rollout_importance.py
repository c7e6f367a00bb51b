"""Attention followed through all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class AttentionRolloutImportance(ImportanceEstimator):
    """Attention rollout from the last token to each one before (arXiv 2005.00928, Eq. 1).

    The product over the layers of ``(1 - r) A + r 1``, with ``A`` the mean over the heads: how much
    of a token's input is left at the last token after all layers, if nothing but attention and the
    residual stream moved it. Models must run eager attention
    (``policy.attn_implementation: eager``).

    Args:
        residual: Share ``r`` of the residual stream, 0 to 1, without 1.
        model: Whose attention: the current ``policy``, the frozen ``reference``, or a further
            model.
    """

    spans_prompt = True

    def __init__(self, residual: float = 0.5, model: str = "policy") -> None:
        if not 0 <= residual < 1:
            raise InputError(f"residual={residual}: expected a number from 0 to 1, without 1")
        self.residual = residual
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """Attention probabilities of the chosen model."""
        return frozenset({f"{self.model}.attentions"})

    def scores(self, results: Results) -> Tensor:
        """What the last token has of each one, ``[N, T]``."""
        last = (results.batch.lengths - 1).tolist()
        attentions = results[f"{self.model}.attentions"]
        flow = torch.zeros(results.mask.shape, device=results.mask.device)
        flow[range(len(last)), last] = 1.0
        for layer in reversed(attentions):  # from the last layer down: a row, not a matrix
            mixed = torch.einsum("nq,nqk->nk", flow, layer.detach().float().mean(1))
            flow = (1 - self.residual) * mixed + self.residual * flow
        return flow
