"""One forward of the policy and the reference, computing what was asked for and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.functional.log_probs import kl_divergence, scatter_tokens, selected_log_probs
from lit_tidpo.reference import Reference
from lit_tidpo.structures import Forward, ModelTrace, ResponseBatch


def run_models(
    policy: nn.Module, reference: Reference, batch: ResponseBatch, needs: frozenset[str]
) -> Forward:
    """Run the policy and, where asked for, the reference.

    Args:
        policy: The policy; its part is inside the graph if gradients are enabled.
        reference: The reference; only what ``reference.embeddings`` asks for has a graph.
        batch: Rows to run.
        needs: Keys of :data:`lit_tidpo.contracts.NEEDS`.

    Returns:
        The traces, and the position-wise KL where asked for.
    """
    reference_fields = _fields(needs, "reference")
    reference_trace, reference_logits = None, None
    if reference_fields or "kl" in needs:
        graph = "embeddings" in reference_fields
        # The reference goes first: switching adapters must not fall between forward and backward.
        with (
            reference.active(policy, batch.input_ids.device) as model,
            torch.set_grad_enabled(graph),
        ):
            reference_trace, reference_logits = _run(model, batch, reference_fields)
    trace, logits = _run(policy, batch, _fields(needs, "policy"))
    kl = None
    if "kl" in needs:
        assert reference_logits is not None
        divergence = kl_divergence(reference_logits.detach(), logits)
        kl = scatter_tokens(divergence, batch.response_mask)
    return Forward(batch, trace, reference_trace, kl)


def _fields(needs: frozenset[str], model: str) -> frozenset[str]:
    return frozenset(need.split(".")[1] for need in needs if need.startswith(f"{model}."))


def _run(
    model: nn.Module, batch: ResponseBatch, fields: frozenset[str]
) -> tuple[ModelTrace, Tensor]:
    """Run one model; also return the logits that predict the response tokens, ``[M, V]``."""
    predicting = batch.response_mask.roll(-1, dims=-1)
    kept = predicting | _last_tokens(batch) if "final_logits" in fields else predicting
    with _captured_embeddings(model) as embeddings, _narrowed_head(model, kept) as narrowed:
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            output_attentions="attentions" in fields,
        )
    logits = output.logits[0] if narrowed else output.logits[kept]
    response_logits = logits[predicting[kept]] if "final_logits" in fields else logits
    labels = batch.input_ids[batch.response_mask]
    trace = ModelTrace(
        scatter_tokens(selected_log_probs(response_logits, labels), batch.response_mask)
    )
    if "embeddings" in fields:
        trace.embeddings = embeddings[0]
    if "attentions" in fields:
        trace.attentions = output.attentions
    if "final_logits" in fields:
        trace.final_logits = logits[kept.sum(-1).cumsum(0) - 1]
    if "label_logits" in fields:
        label_logits = response_logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        trace.label_logits = scatter_tokens(label_logits.float(), batch.response_mask)
    return trace, response_logits


def _last_tokens(batch: ResponseBatch) -> Tensor:
    """True at the last token of each row, ``[N, T]`` bool."""
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    return positions == batch.lengths[:, None] - 1


@contextmanager
def _captured_embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the output of the input embeddings; frozen embeddings get a graph of their own."""
    captured: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        captured.append(output)

    handle = _method(model, "get_input_embeddings")().register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def _narrowed_head(model: nn.Module, kept: Tensor) -> Iterator[list[bool]]:
    """Let the output layer see the kept positions alone: ``[N, T, H]`` becomes ``[1, M, H]``.

    Yields:
        A list that is no longer empty once that has happened. A model whose head is no module of
        its own computes every position.
    """
    narrowed: list[bool] = []

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs[0].shape[:2] != kept.shape:
            return None
        narrowed.append(True)
        return (inputs[0][kept].unsqueeze(0), *inputs[1:])

    head = _method(model, "get_output_embeddings")()
    handle = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield narrowed
    finally:
        if handle is not None:
            handle.remove()


def _method(model: nn.Module, name: str) -> Any:
    method = getattr(model, name, None)
    if method is None:
        raise InputError(
            f"{type(model).__name__} has no {name}(): expected a causal language "
            "model of transformers"
        )
    return method
