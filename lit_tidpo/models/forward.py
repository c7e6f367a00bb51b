"""Forward passes of the policy and the reference, computing what was asked for and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.functional.log_probs import scatter_tokens
from lit_tidpo.functional.predictions import (
    Predictions,
    Projection,
    predictions,
    tiled_predictions,
)
from lit_tidpo.models.model_pass import Output, linear_head, run_pass
from lit_tidpo.models.packing import PackedRows
from lit_tidpo.models.policy import evaluating
from lit_tidpo.models.reference import Reference
from lit_tidpo.structures import Forward, ModelTrace, ResponseBatch

Layout = Literal["padded", "packed", "shared_prompt"]

Request = tuple[ResponseBatch, frozenset[str]]
"""Rows, and the keys of :data:`lit_tidpo.contracts.NEEDS` that are needed of them."""


@dataclass(frozen=True)
class Computation:
    """How rows go through the models. Every choice gives the same values and gradients.

    Attributes:
        layout: ``padded``: all rows as long as the longest. ``packed``: the tokens of all rows side
            by side. ``shared_prompt``: packed, and each prompt once for all its responses. Packed
            rows ask for :func:`lit_tidpo.models.packing.use_packed_attention`.
        logits_at_once: Tokens times vocabulary beyond which logits are computed tile by tile.
        own_logits: Whether the models hand out their logits, as they must where they change them
            after the output layer. Otherwise it is applied here, to the hidden states that count.
    """

    layout: Layout = "padded"
    logits_at_once: int = 2**24
    own_logits: bool = False


_DEFAULT = Computation()


def run_models(
    policy: nn.Module,
    reference: Reference,
    batch: ResponseBatch,
    needs: frozenset[str],
    computation: Computation = _DEFAULT,
) -> Forward:
    """Run the policy and, where asked for, the reference.

    Args:
        policy: The policy; its part is inside the graph if gradients are enabled.
        reference: The reference; only what ``reference.embeddings`` asks for has a graph.
        batch: Rows to run.
        needs: Keys of :data:`lit_tidpo.contracts.NEEDS`.
        computation: How.

    Returns:
        The traces, and the position-wise KL where asked for.
    """
    return run_batches(policy, reference, [(batch, needs)], computation)[0]


def run_batches(
    policy: nn.Module,
    reference: Reference,
    requests: Sequence[Request],
    computation: Computation = _DEFAULT,
) -> list[Forward]:
    """Run batches that have their prompts in common, such as pairs and their anchors.

    Args:
        policy: The policy; its part is inside the graph if gradients are enabled.
        reference: The reference; only what ``reference.embeddings`` asks for has a graph.
        requests: Batches, each with what is needed of it.
        computation: How.

    Returns:
        For each batch the traces, and the position-wise KL where asked for.
    """
    for batch, _ in requests:
        _check_lengths(batch)
        _check_positions(policy, batch)
    if computation.layout == "shared_prompt":
        _check_same_prompts([batch for batch, _ in requests])
    heads = [linear_head(model) for model in (policy, reference.model or policy)]
    if computation.own_logits or None in heads:
        computation = replace(computation, own_logits=True)
    others: list[_Pass | None] = [None] * len(requests)
    traces: list[ModelTrace | None] = [None] * len(requests)
    if any(_fields(needs, "reference") is not None for _, needs in requests):
        graph = any("reference.embeddings" in needs for _, needs in requests)
        # The reference goes first: switching adapters must not fall between forward and backward.
        with (
            reference.active(policy, requests[0][0].input_ids.device) as model,
            torch.set_grad_enabled(graph),
        ):
            others = _run(model, "reference", requests, computation)
            traces = [None if other is None else other.trace(other.predict()) for other in others]
    forwards = []
    passes = _run(policy, "policy", requests, computation)
    for (batch, needs), own, other, trace in zip(requests, passes, others, traces, strict=True):
        assert own is not None
        predicted = own.predict(other if "kl" in needs else None)
        kl = scatter_tokens(predicted.kl, batch.response_mask) if "kl" in needs else None
        forwards.append(Forward(batch, own.trace(predicted), trace, kl))
    return forwards


@dataclass
class _Pass:
    """One model's pass over one batch.

    Attributes:
        model: The model.
        head: Its output layer, to apply to hidden states; None where it hands out logits.
        batch: The rows.
        fields: Fields of the trace that are asked for.
        kept: Positions that the output is about, ``[N, T]`` bool.
        run: Runs the model.
        output: What it computed there.
        tile: Tokens whose logits are computed at a time; None computes them all.
    """

    model: nn.Module
    head: nn.Linear | None
    batch: ResponseBatch
    fields: frozenset[str]
    kept: Tensor
    run: Callable[..., Output]
    output: Output
    tile: int | None

    def predict(self, reference: _Pass | None = None) -> Predictions:
        """Quantities of the response tokens; with a reference the divergence from it."""
        labels = self.batch.input_ids[self.batch.response_mask]
        entropy = "entropy" in self.fields
        if self.tile is None or self.output.logits is not None:
            other = None if reference is None else reference._logits
            return predictions(self._logits, labels, other, entropy)
        projection = None if reference is None else reference._projection()
        return tiled_predictions(self._projection(), labels, self.tile, projection, entropy)

    def trace(self, predicted: Predictions) -> ModelTrace:
        """What was asked for, by row and position."""
        mask = self.batch.response_mask
        trace = ModelTrace(scatter_tokens(predicted.logps, mask), attentions=self.output.attentions)
        if "embeddings" in self.fields:
            trace.embeddings = self.output.embeddings
        if "final_logits" in self.fields:
            trace.final_logits = self._final_logits()
        if "label_logits" in self.fields:
            trace.label_logits = scatter_tokens(predicted.label_logits, mask)
        if "entropy" in self.fields:
            trace.entropy = scatter_tokens(predicted.entropy, mask)
        if "scaled" in self.fields:
            trace.scaled = self._scaled
        return trace

    def _scaled(self, factor: float) -> ModelTrace:
        with evaluating(self.model):  # without dropout, which would draw random numbers
            other = replace(self, output=self.run(factor=factor))
        return other.trace(other.predict())

    @cached_property
    def _logits(self) -> Tensor:
        return self._logits_at(_predicting(self.batch))

    def _final_logits(self) -> Tensor:
        return self._logits_at(_last_tokens(self.batch))

    def _logits_at(self, positions: Tensor) -> Tensor:
        if self.output.logits is not None:
            return self.output.logits[positions[self.kept]]
        assert self.head is not None
        logits: Tensor = self.head(self._hidden_at(positions))
        return logits

    def _projection(self) -> Projection:
        assert self.head is not None
        hidden = self._hidden_at(_predicting(self.batch))
        return Projection(hidden, self.head.weight, self.head.bias)

    def _hidden_at(self, positions: Tensor) -> Tensor:
        assert self.output.hidden is not None
        return self.output.hidden[positions[self.kept]]


def _run(
    model: nn.Module, which: str, requests: Sequence[Request], computation: Computation
) -> list[_Pass | None]:
    """Run one model on the batches of which something is asked of it."""
    fields = [_fields(needs, which) for _, needs in requests]
    batches = [
        batch for (batch, _), asked in zip(requests, fields, strict=True) if asked is not None
    ]
    shared = computation.layout == "shared_prompt"
    prompts = _run_prompts(model, batches[0]) if shared else None
    head = None if computation.own_logits else linear_head(model)
    passes: list[_Pass | None] = []
    for (batch, _), asked in zip(requests, fields, strict=True):
        if asked is None:
            passes.append(None)
            continue
        kept = _predicting(batch)
        if "final_logits" in asked:
            kept = kept | _last_tokens(batch)
        rows = _packed_rows(batch, prompts, computation.layout)
        run = partial(run_pass, model, batch, kept, rows, "attentions" in asked, head is None)
        tile = None if head is None else _tile(head, batch, computation)
        passes.append(_Pass(model, head, batch, asked, kept, run, run(), tile))
    return passes


def _fields(needs: frozenset[str], which: str) -> frozenset[str] | None:
    """Fields asked of one model's trace; None if it need not run."""
    if which == "reference" and not any(n == "kl" or n.startswith("reference.") for n in needs):
        return None
    return frozenset(need.split(".")[1] for need in needs if need.startswith(f"{which}."))


def _packed_rows(
    batch: ResponseBatch, prompts: PackedRows | None, layout: Layout
) -> PackedRows | None:
    if layout == "padded":
        return None
    if prompts is None:
        return PackedRows(batch.attention_mask)
    # The last token of the prompt predicts the first one of the response.
    first = batch.prompt_lengths[:, None] - 1
    return PackedRows(batch.attention_mask & (batch.positions >= first), prompts)


def _run_prompts(model: nn.Module, batch: ResponseBatch) -> PackedRows | None:
    """Run each prompt once, up to the token before its last, for its keys and values."""
    first = batch.role(batch.roles[0])
    rows = PackedRows(first.positions < first.prompt_lengths[:, None] - 1, states={})
    if not bool(rows.taken.any()):
        return None
    run_pass(model, first, torch.zeros_like(rows.taken), rows, with_logits=False)
    return rows


def _check_lengths(batch: ResponseBatch) -> None:
    """Refuse rows without a prompt, whose first token nothing predicts, or cut off."""
    prompts, lengths = batch.prompt_lengths, batch.lengths
    fits = (prompts >= 1) & (prompts <= lengths) & (lengths <= batch.input_ids.shape[1])
    if not bool(fits.all()):
        row = int(fits.long().argmin())
        raise InputError(
            f"row {row} of a batch has prompt_lengths={int(prompts[row])} and "
            f"lengths={int(lengths[row])}: expected 1 <= prompt_lengths <= lengths <= "
            f"{batch.input_ids.shape[1]}, the width of input_ids"
        )


def _check_positions(model: nn.Module, batch: ResponseBatch) -> None:
    """Refuse rows longer than a table of learned positions; other encodings have no end."""
    config: Any = getattr(model, "config", None)
    if config is None:  # not one of transformers
        return
    settings = config.get_text_config()
    limit = getattr(settings, "max_position_embeddings", None)
    learned = not (getattr(settings, "rope_parameters", None) or getattr(settings, "alibi", False))
    longest = int(batch.lengths.max())
    if limit is not None and learned and longest > limit:
        raise InputError(
            f"a row has {longest} tokens, but {type(model).__name__} has learned positions for "
            f"{limit}: lower data.max_length"
        )


def _check_same_prompts(batches: Sequence[ResponseBatch]) -> None:
    """Refuse rows of a pair whose prompts differ."""
    first, *others = (batch.role(role) for batch in batches for role in batch.roles)
    width = int(first.prompt_lengths.max())
    inside = first.positions[:width] < first.prompt_lengths[:, None]
    for other in others:
        same = torch.equal(first.prompt_lengths, other.prompt_lengths) and torch.equal(
            first.input_ids[:, :width][inside], other.input_ids[:, :width][inside]
        )
        if not same:
            raise InputError(
                "the responses of a pair have different prompts, which cannot be computed once "
                "for both: set layout=packed"
            )


def _tile(head: nn.Linear, batch: ResponseBatch, computation: Computation) -> int | None:
    """Tokens in a tile of the output layer; None where all logits are held at once."""
    if batch.response_tokens * head.out_features <= computation.logits_at_once:
        return None
    return max(1, computation.logits_at_once // head.out_features)


def _predicting(batch: ResponseBatch) -> Tensor:
    """True at positions that predict a response token, ``[N, T]`` bool."""
    return batch.response_mask.roll(-1, dims=-1)


def _last_tokens(batch: ResponseBatch) -> Tensor:
    """True at the last token of each row, ``[N, T]`` bool."""
    return batch.positions == batch.lengths[:, None] - 1
