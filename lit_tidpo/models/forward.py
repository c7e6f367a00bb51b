"""One forward of a model over rows, its output layer on the positions that count alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_tidpo.devices.host_rows import Places
from lit_tidpo.models.packed_rows import PackedRows
from lit_tidpo.models.quirks.attention import attention_maps
from lit_tidpo.models.quirks.experts import router_loss
from lit_tidpo.models.quirks.parts import input_layer
from lit_tidpo.structures import ResponseBatch


@dataclass
class Output:
    """What a model computed; ``K`` positions were kept.

    Attributes:
        embeddings: Input embeddings inside the graph, zero where no token was run, ``[N, T, H]``,
            where asked for.
        logits: Logits at the kept positions, ``[K, V]``; None where hidden states serve.
        hidden: What the output layer was given there, ``[K, H]``; None if it cannot be narrowed.
        attentions: Attention probabilities, one ``[N, heads, T, T]`` a layer, where asked for.
        router_loss: Balancing loss of a mixture of experts, ``[N]``, where asked for.
    """

    embeddings: Tensor | None
    logits: Tensor | None
    hidden: Tensor | None
    attentions: tuple[Tensor, ...] | None
    router_loss: Tensor | None = None


def run_model(
    model: nn.Module,
    batch: ResponseBatch,
    kept: Places,
    layer: nn.Module | None,
    rows: PackedRows | None = None,
    attentions: bool = False,
    router: bool = False,
    with_embeddings: bool = False,
    with_logits: bool = True,
    factor: float | Tensor = 1.0,
) -> Output:
    """Run a model on rows, its output layer on the kept positions alone.

    Args:
        model: A causal language model of transformers.
        batch: The rows.
        kept: Positions whose logits are wanted, ``[N, T]``.
        layer: The model's output layer; None where it is no module of its own.
        rows: The tokens to run, side by side; None runs padded rows.
        attentions: Whether attention probabilities are wanted.
        router: Whether the balancing loss of a mixture of experts is wanted.
        with_embeddings: Whether the input embeddings are wanted, with a graph even if frozen.
        with_logits: Whether the model's own logits are wanted, or hidden states; where the output
            layer cannot be narrowed, it is always logits.
        factor: Scales the embeddings of response tokens.

    Returns:
        The output.

    Raises:
        InputError: If the model has no interface to its embeddings.
    """
    inputs: dict[str, Any]
    if rows is None:
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "output_attentions": attentions,
            **({"output_router_logits": True} if router else {}),
        }
    else:
        kept = Places(kept.mask[rows.taken.mask].unsqueeze(0), kept.device)
        inputs = {
            "input_ids": rows.taken.of(batch.input_ids).unsqueeze(0),
            "position_ids": rows.positions,
            # One that transformers takes as it is; else it makes one of all tokens against all.
            "attention_mask": torch.empty(1, 1, 1, 1, device=batch.input_ids.device),
            "packed_rows": rows,
        }
    embeddings: list[Tensor] = []
    with ExitStack() as hooks:
        if with_embeddings:
            embeddings = hooks.enter_context(_captured_embeddings(model, batch, rows, factor))
        end = None if rows is None or rows.prompts is None else rows.prompts.end
        hidden = hooks.enter_context(_narrowed_head(layer, kept, with_logits, end))
        output = model(**inputs, use_cache=False)
    logits = None
    if not hidden:
        logits = _hung_on(kept.of(output.logits), end)
    elif with_logits:
        logits = output.logits[0]
    return Output(
        embeddings[0] if embeddings else None,
        logits,
        hidden[0] if hidden else None,
        attention_maps(output, batch.input_ids.shape[1]) if attentions else None,
        router_loss(model, output).expand(len(batch.lengths)) if router else None,
    )


@contextmanager
def _captured_embeddings(
    model: nn.Module, batch: ResponseBatch, rows: PackedRows | None, factor: float | Tensor
) -> Iterator[list[Tensor]]:
    """Collect the output of the input embeddings; frozen embeddings get a graph of their own."""
    captured: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if rows is not None:
            # By row and position, so that an estimator need not know how the rows are laid out.
            output = rows.taken.table(output[0])
        if isinstance(factor, Tensor) or factor != 1:
            output = output.where(~batch.response_mask.unsqueeze(-1), factor * output)
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        captured.append(output)
        if rows is None and output.is_leaf and output.requires_grad:
            return output.clone()  # some models change their embeddings in place, such as CTRL
        return output if rows is None else rows.taken.of(output).unsqueeze(0)

    handle = input_layer(model).register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def _hung_on(values: Tensor, end: Tensor | None) -> Tensor:
    """Values that hang on a 0, if there is one."""
    return values if end is None else values + end


@contextmanager
def _narrowed_head(
    layer: nn.Module | None, kept: Places, with_logits: bool, end: Tensor | None
) -> Iterator[list[Tensor]]:
    """Let the output layer see the kept positions alone: ``[N, T, H]`` becomes ``[1, K, H]``.

    Yields:
        A list that holds what the output layer was given, once that has happened. A model whose
        head is no module of its own computes every position.
    """
    hidden: list[Tensor] = []

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs[0].shape[:2] != kept.mask.shape:
            return None
        hidden.append(_hung_on(kept.of(inputs[0]), end))
        return (hidden[0][: None if with_logits else 0].unsqueeze(0), *inputs[1:])

    handle = layer.register_forward_pre_hook(narrow) if layer is not None else None
    try:
        yield hidden
    finally:
        if handle is not None:
            handle.remove()
