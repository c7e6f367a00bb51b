"""Gradient attribution on the input embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.errors import InputError, check_choice
from lit_tidpo.functional.importance import relative_to_neighbours
from lit_tidpo.structures import Forward, ModelTrace

Target = Literal["max_logit", "response_logp", "response_logits", "log_ratio"]
Norm = Literal["l1", "l2", "times_input"]
Correction = Literal["none", "embedding_norm", "neighbours"]
Attributed = Literal["policy", "reference"]

_NEIGHBOURS = 8  # places to each side

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
        norm: What a token's gradient is measured by: its norm, ``l1`` (Eq. 6) or ``l2``; or
            ``times_input``, the absolute value of its scalar product with the embedding, which is
            what the target would lose, to first order, if the embedding were zero.
        model: Whose gradient: the current ``policy``, or the frozen ``reference``.
        exclude_target: Leave out the last token of each row: it attributes to itself, which takes a
            large share of the total.
        correction: Takes out of the scores what is not the token's own doing. ``embedding_norm``
            multiplies by the L2 norm of the embedding: models that normalise their input answer to
            its direction alone, so gradients shrink as embeddings grow. ``neighbours`` divides by
            the mean score of the response tokens up to 8 places away, and so takes out the course
            over positions.
        integration_steps: Integrated gradients (arXiv 1703.01365) of the response, in place of the
            gradient at its embeddings alone: the mean gradient at so many points of the straight
            path from zero (middle Riemann sum), for ``norm='times_input'``. Signed attributions
            add up to what the target changes along the path. Each point runs the policy once more;
            0 is off.

    Raises:
        InputError: If arguments do not fit together.
    """

    def __init__(
        self,
        target: Target = "max_logit",
        norm: Norm = "l1",
        model: Attributed = "policy",
        exclude_target: bool = False,
        correction: Correction = "none",
        integration_steps: int = 0,
    ) -> None:
        check_choice("target", target, Target)
        check_choice("norm", norm, Norm)
        check_choice("model", model, Attributed)
        check_choice("correction", correction, Correction)
        if target == "log_ratio" and model == "reference":
            raise InputError(
                "target='log_ratio' compares the policy with the reference: expected model='policy'"
            )
        if norm == "times_input" and correction == "embedding_norm":
            raise InputError(
                "norm='times_input' holds the embedding's norm already: expected "
                "correction='none' or 'neighbours'"
            )
        if integration_steps < 0:
            raise InputError(f"integration_steps={integration_steps}: expected 0 or more")
        if integration_steps and (norm, model) != ("times_input", "policy"):
            raise InputError(
                f"integration_steps={integration_steps} with norm={norm!r}, model={model!r}: "
                "expected norm='times_input', model='policy'"
            )
        if integration_steps and target == "log_ratio":
            raise InputError(
                "integration_steps follows the policy alone: expected another target than "
                "'log_ratio'"
            )
        self.target = target
        self.norm = norm
        self.model = model
        self.exclude_target = exclude_target
        self.correction = correction
        self.integration_steps = integration_steps

    @property
    def needs(self) -> frozenset[str]:
        """Embeddings of the attributed model and what the target is made of."""
        needs = {f"{self.model}.embeddings", f"{self.model}.{_FIELD[self.target]}"}
        if self.target == "log_ratio":
            needs.add("reference.embeddings")
        if self.integration_steps:
            needs.add("policy.scaled")
        return frozenset(needs)

    def scores(self, forward: Forward) -> Tensor:
        """Measures of the gradients, zero at padding, ``[N, T]``."""
        trace = forward.policy if self.model == "policy" else forward.reference
        assert trace is not None  # declared in needs
        attribution = self._attribution(trace)
        if self.target == "log_ratio":
            assert forward.reference is not None
            attribution = attribution - self._attribution(forward.reference)
        scores = self._measure(attribution.float())
        counted = forward.batch.response_mask
        if self.exclude_target:
            last = (forward.batch.lengths - 1).unsqueeze(-1)
            scores = scores.scatter(-1, last, 0.0)
            counted = counted.scatter(-1, last, False)
        if self.correction == "neighbours":
            scores = relative_to_neighbours(scores, counted, _NEIGHBOURS)
        return scores

    def _attribution(self, trace: ModelTrace) -> Tensor:
        """Gradient for the embeddings, scaled as ``norm`` and ``correction`` say, ``[N, T, H]``."""
        assert trace.embeddings is not None
        gradient = self._gradient(trace)
        embeddings = trace.embeddings.detach()
        if self.norm == "times_input":
            return gradient * embeddings
        if self.correction == "embedding_norm":
            norms: Tensor = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
            return gradient * norms
        return gradient

    def _gradient(self, trace: ModelTrace) -> Tensor:
        """Gradient for the embeddings, or its mean along the path to them, ``[N, T, H]``."""
        if self.integration_steps == 0:
            return self._gradient_at(trace, retain_graph=True)
        assert trace.scaled is not None  # declared in needs
        assert trace.embeddings is not None
        total = torch.zeros_like(trace.embeddings)
        for step in range(self.integration_steps):
            total += self._gradient_at(trace.scaled((step + 0.5) / self.integration_steps))
        return total / self.integration_steps

    def _gradient_at(self, trace: ModelTrace, retain_graph: bool = False) -> Tensor:
        assert trace.embeddings is not None
        target = self._target(trace).sum()
        gradient: Tensor
        (gradient,) = torch.autograd.grad(target, trace.embeddings, retain_graph=retain_graph)
        return gradient

    def _measure(self, attribution: Tensor) -> Tensor:
        """One number for each token, ``[N, T]``."""
        if self.norm == "times_input":
            products: Tensor = attribution.sum(-1).abs()
            return products
        order = 1 if self.norm == "l1" else 2
        norms: Tensor = torch.linalg.vector_norm(attribution, order, dim=-1)
        return norms

    def _target(self, trace: ModelTrace) -> Tensor:
        if self.target == "max_logit":
            assert trace.final_logits is not None
            return trace.final_logits.amax(-1)
        if self.target == "response_logits":
            assert trace.label_logits is not None
            return trace.label_logits
        return trace.logps
