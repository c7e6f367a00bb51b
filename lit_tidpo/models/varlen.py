"""Attention over rows side by side by PyTorch's kernel for them, on GPUs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None  # type: ignore[assignment]


def computing_dtype(states: Tensor) -> torch.dtype:
    """What attention computes in: SDPA follows autocast by itself, this kernel does not."""
    kind = states.device.type
    if torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return states.dtype


def serves(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
    """Whether the kernel is there for these tokens, and gives what SDPA gives.

    Args:
        query: ``[heads, M, D]``.
        key: ``[heads of keys, M, D]``.
        value: ``[heads of keys, M, D]``.
        options: Of the attention; dropout and a bias are not for this kernel.
    """
    size = query.shape[-1]
    return (
        varlen_attn is not None
        and query.is_cuda
        and computing_dtype(query) in (torch.bfloat16, torch.float16)
        and size == value.shape[-1]
        and size % 8 == 0
        and size <= 256
        and not options.get("dropout")
        and options.get("position_bias") is None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _agrees(query.device, computing_dtype(query), query.shape[0], key.shape[0], size)
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    widths: tuple[int, int],
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Attend row by row; the last token of a row sees its last key, and each one before one less.

    Args:
        query: ``[M, heads, D]``.
        key: ``[K, heads of keys, D]``.
        value: ``[K, heads of keys, D]``.
        query_starts: Where each row starts among the queries, and their number, ``[N + 1]`` int32.
        key_starts: The same of the keys.
        widths: Queries and keys of the longest row.
        window: Number of keys that a token sees, its own included; None sees all.
        scaling: Of the scores; None takes the usual one.

    Returns:
        ``[M, heads, D]``.
    """
    grouped: dict[str, Any] = {}
    if _asks_for_groups(varlen_attn):
        grouped = {"enable_gqa": query.shape[1] != key.shape[1]}
    dtype = computing_dtype(query)
    output = varlen_attn(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        query_starts,
        key_starts,
        *widths,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(output, Tensor)  # the log-sum-exp comes on demand alone
    return output


@cache
def _asks_for_groups(kernel: Callable[..., Any]) -> bool:
    """Whether groups of heads have to be named; before PyTorch 2.12 they are taken as they come."""
    return "enable_gqa" in inspect.signature(kernel).parameters


@cache
@torch.no_grad()
def _agrees(device: torch.device, dtype: torch.dtype, heads: int, of_keys: int, size: int) -> bool:
    """Whether two short rows, one of them behind a prompt, come out as SDPA computes them."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(8, heads, size, generator=draw).to(device, dtype)
    key, value = torch.randn(2, 13, of_keys, size, generator=draw).to(device, dtype)
    starts = torch.tensor([[0, 5, 8], [0, 5, 13]], dtype=torch.int32, device=device)
    with torch.autocast(device.type, enabled=False):
        found = attend(query, key, value, starts[0], starts[1], (5, 8), None, None)
        expected = []
        for rows, keys in ((slice(0, 5), slice(0, 5)), (slice(5, 8), slice(5, 13))):
            row, seen, told = (
                states.float().transpose(0, 1) for states in (query[rows], key[keys], value[keys])
            )
            seen, told = (states.repeat_interleave(heads // of_keys, 0) for states in (seen, told))
            shape = (row.shape[1], seen.shape[1])
            mask = torch.ones(shape, dtype=torch.bool, device=device).tril(shape[1] - shape[0])
            expected.append(scaled_dot_product_attention(row, seen, told, mask).transpose(0, 1))
    error = float((found.float() - torch.cat(expected)).abs().max())
    if not error < 0.05:
        rank_zero_info(
            "Packed rows are laid out for attention: PyTorch's kernel for them gives other values, "
            f"by up to {error:.2g}"
        )
        return False
    return True
