"""Attention over packed rows: tokens of many rows side by side, without padding between them.

All layers but attention work token by token, so they take the packed tokens ``[1, M, H]`` as they
are. Attention alone must know which tokens belong together. It is plugged in through the attention
interface of transformers and hands everything else on to PyTorch's SDPA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "lit_tidpo_packed"
"""Name of the attention implementation; without packed rows it is ``sdpa``."""


class PackedRows:
    """Which of the packed tokens form a row, and what stands before them.

    Not a dataclass: FSDP would hand each layer a copy, and what a layer keeps would be lost.

    Args:
        taken: Tokens of the rows that are packed, row by row, ``[N, T]`` bool; in each row they are
            neighbours.
        prompts: Rows that were run before; row ``n`` continues row ``n`` modulo their number.
        states: Keys and values of these rows by layer, ``[heads, M, D]``, if they are to be kept.
    """

    def __init__(
        self,
        taken: Tensor,
        prompts: PackedRows | None = None,
        states: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.taken = taken
        self.prompts = prompts
        self.states = states
        self.lengths = taken.sum(-1)
        self.width = int(self.lengths.max())
        self.filled = torch.arange(self.width, device=taken.device) < self.lengths[:, None]
        self.slots = self.filled.flatten().nonzero().squeeze(-1)
        self._masks: dict[int | None, Tensor] = {}

    @property
    def positions(self) -> Tensor:
        """Position of each packed token in its row, ``[1, M]``."""
        return self.taken.nonzero()[:, 1].unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """Packed tokens ``[heads, M, D]`` to rows, zero at their ends, ``[N, heads, R, D]``."""
        heads, _, size = packed.shape
        padded = packed.new_zeros(self.filled.numel(), heads, size)
        padded = padded.index_copy(0, self.slots, packed.transpose(0, 1))
        return padded.view(*self.filled.shape, heads, size).transpose(1, 2)

    def pack(self, rows: Tensor) -> Tensor:
        """Rows ``[N, R, heads, D]`` to packed tokens ``[1, M, heads, D]``."""
        return rows.flatten(0, 1).index_select(0, self.slots).unsqueeze(0)

    def with_prompts(self, states: Tensor, layer: int, which: int) -> Tensor:
        """Keys (0) or values (1) of the prompt and the row itself, ``[N, heads, P + R, D]``."""
        own = self.unpack(states)
        if self.prompts is None:
            return own
        assert self.prompts.states is not None
        before = self.prompts.unpack(self.prompts.states[layer][which])
        return torch.cat([before.repeat(len(own) // len(before), 1, 1, 1), own], dim=2)

    def mask(self, window: int | None) -> Tensor | None:
        """Which keys each query sees, ``[N, 1, R, P + R]`` bool; None for the plain causal one.

        Args:
            window: Number of positions that a token sees, itself included; None sees all.
        """
        if self.prompts is None and window is None:
            return None  # what pads a row stands behind its tokens, where no token looks
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Tensor:
        device = self.taken.device
        before, known = self.lengths.new_zeros(len(self.lengths)), self.filled
        positions = torch.arange(self.width, device=device).expand(len(self.lengths), -1)
        queries = positions
        if self.prompts is not None:
            times = len(self.lengths) // len(self.prompts.lengths)
            before = self.prompts.lengths.repeat(times)
            queries = before[:, None] + positions
            heads = torch.arange(self.prompts.width, device=device).expand(len(before), -1)
            positions = torch.cat([heads, queries], dim=1)
            known = torch.cat([self.prompts.filled.repeat(times, 1), self.filled], dim=1)
        distance = queries[:, :, None] - positions[:, None, :]
        seen = (distance >= 0) & known[:, None, :]
        if window is not None:
            seen &= distance < window
        # What only fills up a row sees everything, so that its softmax is defined.
        return (seen | ~self.filled[:, :, None]).unsqueeze(1)


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
    """SDPA row by row; the signature is that of the attention interface of transformers."""
    if packed_rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )
    rows, layer = packed_rows, int(module.layer_idx)  # type: ignore[arg-type]
    if rows.states is not None:
        # Activation checkpointing comes here again: what the first pass left is in the graph.
        rows.states.setdefault(layer, (key[0], value[0]))
    output, _ = sdpa_attention_forward(
        module,
        rows.unpack(query[0]),
        rows.with_prompts(key[0], layer, 0),
        rows.with_prompts(value[0], layer, 1),
        rows.mask(sliding_window),
        **options,
    )
    return rows.pack(output), None


def use_packed_attention(model: Any) -> bool:
    """Exchange a model's SDPA for the one that knows packed rows.

    Args:
        model: A model of transformers, or peft's wrapper of one; changed in place.

    Returns:
        Whether the model runs SDPA through the attention interface, so that it can be exchanged.
    """
    kernel = getattr(model.config, "_attn_implementation", None)
    if kernel == "sdpa" and getattr(model, "_supports_attention_backend", False):
        AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
        AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
        model.set_attn_implementation(PACKED_ATTENTION)
        return True
    return kernel == PACKED_ATTENTION
