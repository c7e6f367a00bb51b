"""The plain structures that a preference pair turns into on its way to the loss.

Shape legend, used all over the package:

====  =====================================================================================
``B``  prompts (preference pairs) in a batch
``M``  response tokens of all rows together
``N``  rows (responses) in a batch: ``B`` times the number of roles, role by role
``T``  token positions of a row: prompt, response, right padding
``V``  vocabulary entries
``H``  width of the embeddings
====  =====================================================================================

Every ``[N, T]`` tensor of per-token values is aligned with its *own* token: column ``t`` belongs to
the token ``input_ids[:, t]``, whose log-prob the model predicts at position ``t - 1``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class ResponseBatch:
    """Responses as right-padded rows of ``prompt + response`` tokens.

    Attributes:
        input_ids: Token ids, ``[N, T]``.
        prompt_lengths: Tokens of the prompt in each row, ``[N]``.
        lengths: Tokens of prompt and response in each row, ``[N]``.
        roles: Names of the roles; rows ``k * B`` to ``(k + 1) * B`` hold the role ``roles[k]``.
        index: Position of each pair in its data set, ``[B]``.
        counted: False for a pair that only fills up a distributed batch, ``[B]`` bool.
        supplied_weights: Token weights that came with the data, ``[N, T]``, or None.
        upcoming: Chosen rows of the batches that follow, where this one starts a window.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    roles: tuple[str, ...]
    index: Tensor
    counted: Tensor
    supplied_weights: Tensor | None = None
    upcoming: tuple[ResponseBatch, ...] = ()

    @property
    def size(self) -> int:
        """Number of pairs ``B``."""
        return len(self.input_ids) // len(self.roles)

    @property
    def positions(self) -> Tensor:
        """Positions ``0 .. T - 1``, ``[T]``."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)

    @property
    def attention_mask(self) -> Tensor:
        """True at the tokens of prompt and response, from the lengths alone, ``[N, T]`` bool."""
        return self.positions < self.lengths[:, None]

    @property
    def response_mask(self) -> Tensor:
        """True at the tokens of the response, ``[N, T]`` bool."""
        return self.attention_mask & (self.positions >= self.prompt_lengths[:, None])

    @property
    def response_tokens(self) -> int:
        """Tokens of all responses together: ``M``."""
        return int((self.lengths - self.prompt_lengths).sum())

    def rows(self, role: str) -> slice:
        """Rows that hold ``role``."""
        position = self.roles.index(role)
        return slice(position * self.size, (position + 1) * self.size)

    def role(self, role: str) -> ResponseBatch:
        """The rows of one role as a batch of their own, cut to their longest row."""
        rows = self.rows(role)
        lengths = self.lengths[rows]
        width = int(lengths.max())
        weights = self.supplied_weights
        return dataclasses.replace(
            self,
            input_ids=self.input_ids[rows, :width],
            prompt_lengths=self.prompt_lengths[rows],
            lengths=lengths,
            roles=(role,),
            supplied_weights=None if weights is None else weights[rows, :width],
            upcoming=(),
        )

    def pin_memory(self) -> ResponseBatch:
        """Copy to page-locked memory (called by the data loader)."""
        pinned: dict[str, Any] = {
            entry.name: value.pin_memory()
            for entry in dataclasses.fields(self)
            if isinstance(value := getattr(self, entry.name), Tensor)
        }
        upcoming = tuple(batch.pin_memory() for batch in self.upcoming)
        return dataclasses.replace(self, **pinned, upcoming=upcoming)


def joined(batches: Sequence[ResponseBatch]) -> ResponseBatch:
    """Batches of the same single role as one, without supplied weights.

    Args:
        batches: At least one.

    Returns:
        Their rows in order, padded to the longest.
    """
    assert all(len(batch.roles) == 1 for batch in batches)
    width = max(batch.input_ids.shape[1] for batch in batches)
    rows = [pad(batch.input_ids, (0, width - batch.input_ids.shape[1])) for batch in batches]
    return ResponseBatch(
        input_ids=torch.cat(rows),
        prompt_lengths=torch.cat([batch.prompt_lengths for batch in batches]),
        lengths=torch.cat([batch.lengths for batch in batches]),
        roles=batches[0].roles,
        index=torch.cat([batch.index for batch in batches]),
        counted=torch.cat([batch.counted for batch in batches]),
    )


@dataclass
class ModelTrace:
    """What one model computed for a batch; fields that nobody asked for are None.

    Attributes:
        logps: Log-probs of the response tokens in nats, zero elsewhere, ``[N, T]``.
        embeddings: Input embeddings inside the graph, ``[N, T, H]``.
        final_logits: Logits at the last token of each row, ``[N, V]``.
        label_logits: Logit of each response token, zero elsewhere, ``[N, T]``.
        attentions: Attention probabilities, one ``[N, heads, T, T]`` a layer.
        entropy: Entropy of the distribution that predicts each response token, in nats, zero
            elsewhere, ``[N, T]``.
        scaled: Runs the model once more, in eval mode, with the embeddings of response tokens times
            a factor, and gives that trace.
    """

    logps: Tensor
    embeddings: Tensor | None = None
    final_logits: Tensor | None = None
    label_logits: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None
    entropy: Tensor | None = None
    scaled: Callable[[float], ModelTrace] | None = None


@dataclass
class Forward:
    """One forward of the policy and, where asked for, the reference: what an estimator sees.

    Attributes:
        batch: The rows.
        policy: Trace of the policy.
        reference: Trace of the reference, or None.
        kl: ``KL(reference || policy)`` of the distribution that predicts each response token, in
            nats, zero elsewhere, ``[N, T]``; None where nobody asked for it.
    """

    batch: ResponseBatch
    policy: ModelTrace
    reference: ModelTrace | None = None
    kl: Tensor | None = None


@dataclass
class TokenScores:
    """Per-token results of one role: what losses, metrics, predictions and pages share.

    Attributes:
        mask: True at response tokens, ``[B, T]`` bool.
        policy_logps: Log-probs under the policy in nats, ``[B, T]``.
        reference_logps: Log-probs under the reference in nats, ``[B, T]``, or None.
        kl: Position-wise ``KL(reference || policy)`` in nats, ``[B, T]``, or None.
        weights: Importance weights, zero off the response, ``[B, T]``, or None.
        raw_scores: The estimator's scores that the weights were made of, ``[B, T]``, or None.
    """

    mask: Tensor
    policy_logps: Tensor
    reference_logps: Tensor | None = None
    kl: Tensor | None = None
    weights: Tensor | None = None
    raw_scores: Tensor | None = None

    @property
    def log_ratios(self) -> Tensor:
        """Per-token log-ratios ``log pi - log ref`` in nats, ``[B, T]``.

        Raises:
            ValueError: If the reference's log-probs were not asked for.
        """
        if self.reference_logps is None:
            raise ValueError(
                "log_ratios needs the reference's log-probs, which were not computed: "
                "declare the need 'reference.logps'"
            )
        return self.policy_logps - self.reference_logps


@dataclass
class Prediction:
    """What ``predict`` tells of a batch: its rows and their detached per-token results by role."""

    batch: ResponseBatch
    scores: dict[str, TokenScores]
