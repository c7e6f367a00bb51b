"""One pass of a language model of transformers over rows, padded or packed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lit_tidpo.errors import InputError
from lit_tidpo.models.packing import PackedRows
from lit_tidpo.structures import ResponseBatch


@dataclass
class Output:
    """What one pass leaves behind; ``K`` positions were kept.

    Attributes:
        embeddings: Input embeddings inside the graph, zero where no token was run, ``[N, T, H]``.
        logits: Logits at the kept positions, ``[K, V]``; None where hidden states serve.
        hidden: What the output layer was given there, ``[K, H]``; None if it cannot be narrowed.
        attentions: Attention probabilities, one ``[N, heads, T, T]`` a layer, where asked for.
    """

    embeddings: Tensor
    logits: Tensor | None
    hidden: Tensor | None
    attentions: tuple[Tensor, ...] | None


def run_pass(
    model: nn.Module,
    batch: ResponseBatch,
    kept: Tensor,
    rows: PackedRows | None = None,
    attentions: bool = False,
    with_logits: bool = True,
    factor: float = 1.0,
) -> Output:
    """Run a model on rows, its output layer on the kept positions alone.

    Args:
        model: A causal language model of transformers.
        batch: The rows.
        kept: Positions whose logits are wanted, ``[N, T]`` bool.
        rows: The tokens to run, side by side; None runs padded rows.
        attentions: Whether attention probabilities are wanted.
        with_logits: Whether the model's own logits are wanted, or hidden states (see
            :func:`linear_head`); where the output layer cannot be narrowed, it is always logits.
        factor: Scales the embeddings of response tokens.

    Returns:
        The output.

    Raises:
        InputError: If the model has no interface to its embeddings.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "output_attentions": attentions,
    }
    if rows is not None:
        kept = kept[rows.taken].unsqueeze(0)
        inputs = {
            "input_ids": batch.input_ids[rows.taken].unsqueeze(0),
            "position_ids": rows.positions,
            # One that transformers takes as it is; else it makes one of all tokens against all.
            "attention_mask": torch.empty(1, 1, 1, 1, device=batch.input_ids.device),
            "packed_rows": rows,
        }
    with (
        _captured_embeddings(model, batch, rows, factor) as embeddings,
        _narrowed_head(model, kept, with_logits) as hidden,
    ):
        output = model(**inputs, use_cache=False)
    logits = None
    if not hidden:
        logits = output.logits[kept]
    elif with_logits:
        logits = output.logits[0]
    return Output(
        embeddings[0],
        logits,
        hidden[0] if hidden else None,
        output.attentions if attentions else None,
    )


def linear_head(model: nn.Module) -> nn.Linear | None:
    """The output layer, if it can be applied to hidden states outside the model.

    That is a plain linear layer whose output the model hands out as it is, whole on this device.
    """
    head, config = _method(model, "get_output_embeddings")(), getattr(model, "config", None)
    if type(head) is not nn.Linear or isinstance(model, FSDPModule) or config is None:
        return None
    settings = config.get_text_config()
    changed = any(getattr(settings, name, None) not in (None, 1.0) for name in _AFTER_THE_HEAD)
    return None if changed else head


_AFTER_THE_HEAD = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "unpadded_vocab_size",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings by which models of transformers change what their output layer computed."""


@contextmanager
def _captured_embeddings(
    model: nn.Module, batch: ResponseBatch, rows: PackedRows | None, factor: float
) -> Iterator[list[Tensor]]:
    """Collect the output of the input embeddings; frozen embeddings get a graph of their own."""
    captured: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if rows is not None:
            # By row and position, so that an estimator need not know how the rows are laid out.
            table = output.new_zeros(*rows.taken.shape, output.shape[-1])
            output = table.masked_scatter(rows.taken.unsqueeze(-1), output)
        if factor != 1:
            output = output.where(~batch.response_mask.unsqueeze(-1), factor * output)
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        captured.append(output)
        return output if rows is None else output[rows.taken].unsqueeze(0)

    handle = _method(model, "get_input_embeddings")().register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def _narrowed_head(model: nn.Module, kept: Tensor, with_logits: bool) -> Iterator[list[Tensor]]:
    """Let the output layer see the kept positions alone: ``[N, T, H]`` becomes ``[1, K, H]``.

    Yields:
        A list that holds what the output layer was given, once that has happened. A model whose
        head is no module of its own computes every position.
    """
    hidden: list[Tensor] = []

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs[0].shape[:2] != kept.shape:
            return None
        hidden.append(inputs[0][kept])
        return (hidden[0][: None if with_logits else 0].unsqueeze(0), *inputs[1:])

    head = _method(model, "get_output_embeddings")()
    handle = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield hidden
    finally:
        if handle is not None:
            handle.remove()


def _method(model: nn.Module, name: str) -> Any:
    method = getattr(model, name, None)
    if method is None:
        raise InputError(
            f"{type(model).__name__} has no {name}: expected a causal language model of "
            "transformers"
        )
    return method
