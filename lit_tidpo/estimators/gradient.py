"""Gradient attribution on the input embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.errors import InputError
from lit_tidpo.structures import Forward, ModelTrace

Target = Literal["max_logit", "response_logp", "response_logits", "log_ratio"]

_FIELD = {
    "max_logit": "final_logits",
    "response_logp": "embeddings",
    "response_logits": "label_logits",
    "log_ratio": "embeddings",
}


class GradientImportance(ImportanceEstimator):
    """Norm of the gradient of a target with respect to each token's input embedding (Eq. 5-6).

    The gradient comes from the graph of the training forward itself: no second forward, and no
    parameter's gradient is touched.

    Args:
        target: ``max_logit``: the largest logit at the last position (Eq. 5). ``response_logp``:
            the log-likelihood of the response. ``response_logits``: the sum of the logits of its
            tokens. ``log_ratio``: its log-likelihood under the policy minus that under the
            reference.
        norm: Norm of a token's gradient: ``l1`` (Eq. 6) or ``l2``.
        model: Whose gradient: the current ``policy``, or the frozen ``reference``.
        exclude_target: Leave out the last token of each row: it attributes to itself, which takes a
            large share of the total.
    """

    def __init__(
        self,
        target: Target = "max_logit",
        norm: Literal["l1", "l2"] = "l1",
        model: Literal["policy", "reference"] = "policy",
        exclude_target: bool = False,
    ) -> None:
        if target == "log_ratio" and model == "reference":
            raise InputError(
                "target='log_ratio' compares the policy with the reference: expected model='policy'"
            )
        self.target = target
        self.norm = norm
        self.model = model
        self.exclude_target = exclude_target

    @property
    def needs(self) -> frozenset[str]:
        """Embeddings of the attributed model and what the target is made of."""
        needs = {f"{self.model}.embeddings", f"{self.model}.{_FIELD[self.target]}"}
        if self.target == "log_ratio":
            needs.add("reference.embeddings")
        return frozenset(needs)

    def scores(self, forward: Forward) -> Tensor:
        """Gradient norms, zero at padding, ``[N, T]``."""
        trace = forward.policy if self.model == "policy" else forward.reference
        assert trace is not None  # declared in needs
        gradient = self._gradient(trace)
        if self.target == "log_ratio":
            assert forward.reference is not None
            gradient = gradient - self._gradient(forward.reference)
        order = 1 if self.norm == "l1" else 2
        scores: Tensor = torch.linalg.vector_norm(gradient.float(), order, dim=-1)
        if self.exclude_target:
            last = (forward.batch.lengths - 1).unsqueeze(-1)
            scores = scores.scatter(-1, last, 0.0)
        return scores

    def _gradient(self, trace: ModelTrace) -> Tensor:
        """Gradient of the target with respect to the embeddings, ``[N, T, H]``."""
        assert trace.embeddings is not None
        target = self._target(trace).sum()
        gradient: Tensor = torch.autograd.grad(target, trace.embeddings, retain_graph=True)[0]
        return gradient

    def _target(self, trace: ModelTrace) -> Tensor:
        if self.target == "max_logit":
            assert trace.final_logits is not None
            return trace.final_logits.amax(-1)
        if self.target == "response_logits":
            assert trace.label_logits is not None
            return trace.label_logits
        return trace.logps
