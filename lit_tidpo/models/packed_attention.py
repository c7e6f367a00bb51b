"""Attention over packed rows: tokens of many rows side by side, without padding between them.

All layers but attention work token by token, so they take the packed tokens ``[1, M, H]`` as they
are. Attention alone must know which tokens belong together. It is plugged in through the attention
interface of transformers. On a GPU in half precision a kernel of PyTorch takes the tokens side by
side; elsewhere they are laid out as rows for SDPA, which also does everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_tidpo.models import varlen
from lit_tidpo.models.packed_rows import PackedRows
from lit_tidpo.models.quirks.attention import attention_kernel, has_attention_interface

PACKED_ATTENTION = "lit_tidpo_packed"
"""Name of the attention implementation; without packed rows it is ``sdpa``."""


@dataclass
class Windows:
    """Sizes of the windows that a model attends in.

    Attributes:
        of_masks: Those that its masks are made with.
        of_layers: Those that its layers tell the attention, which are all that packed rows know.
    """

    of_masks: set[int] = field(default_factory=set)
    of_layers: set[int] = field(default_factory=set)


_recorded: list[Windows] = []


@contextmanager
def recorded_windows() -> Iterator[Windows]:
    """Note the windows of the models that run meanwhile; see :func:`use_packed_attention`."""
    _recorded.append(Windows())
    try:
        yield _recorded[-1]
    finally:
        _recorded.pop()


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    """SDPA's mask; the signature is that of the mask interface of transformers."""
    for windows in _recorded:
        windows.of_masks |= {options.get("local_size")} - {None}  # type: ignore[arg-type]
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: PackedRows | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention row by row; the signature is that of the attention interface of transformers."""
    for windows in _recorded:
        windows.of_layers |= {sliding_window} - {None}  # type: ignore[arg-type]
    if packed_rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )
    rows, layer = packed_rows, int(module.layer_idx)  # type: ignore[arg-type]
    if rows.states is not None:
        # Activation checkpointing comes here again: what the first pass left is in the graph.
        rows.states.setdefault(layer, (key[0], value[0]))
    if rows.on_gpu and varlen.serves(query[0], key[0], value[0], options):
        output = varlen.attend(
            query[0].transpose(0, 1),
            rows.keys_side_by_side(key[0], layer, 0),
            rows.keys_side_by_side(value[0], layer, 1),
            rows.query_starts,
            rows.key_starts,
            (rows.width, rows.span),
            sliding_window,
            options.get("scaling"),
        )
        return output.unsqueeze(0), None
    output, _ = sdpa_attention_forward(
        module,
        rows.queries(query[0], sliding_window),
        rows.keys(key[0], layer, 0),
        rows.keys(value[0], layer, 1),
        rows.mask(sliding_window, query.dtype),
        **options,
    )
    return rows.pack(output, sliding_window), None


def use_packed_attention(model: Any) -> bool:
    """Exchange a model's SDPA for the one that knows packed rows.

    Args:
        model: A model of transformers, or peft's wrapper of one; changed in place.

    Returns:
        Whether the model runs SDPA through the attention interface, so that it can be exchanged.
    """
    kernel = attention_kernel(model)
    if kernel == "sdpa" and has_attention_interface(model):
        AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
        AttentionMaskInterface.register(PACKED_ATTENTION, _mask)
        model.set_attn_implementation(PACKED_ATTENTION)
        return True
    return kernel == PACKED_ATTENTION


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Run a model's own SDPA meanwhile: generation asks nothing else of it, at every token."""
    exchanged = attention_kernel(model) == PACKED_ATTENTION
    if exchanged:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if exchanged:
            model.set_attn_implementation(PACKED_ATTENTION)
