"""Contexts padded on the left for ``generate``, and its rows padded on the right again."""

from __future__ import annotations

import torch
from torch import Tensor


def left_padded(input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Move the first ``lengths`` tokens of each row to its right end."""
    width = int(lengths.max())
    shifted = torch.arange(width, device=input_ids.device) - (width - lengths)[:, None]
    mask = shifted >= 0
    return input_ids.gather(-1, shifted.clamp(min=0)).masked_fill(~mask, 0), mask.long()


def right_padded(generated: Tensor, offsets: Tensor, lengths: Tensor) -> Tensor:
    """Move each row's tokens, which start at its offset, to its left end."""
    positions = torch.arange(int(lengths.max()), device=generated.device)
    source = (positions + offsets[:, None]).clamp(max=generated.shape[1] - 1)
    return generated.gather(-1, source).masked_fill(positions >= lengths[:, None], 0)


def lengths_to_first_end(tokens: Tensor, ends: list[int]) -> Tensor:
    """Tokens up to and including the first end-of-sequence token, ``[B]``."""
    is_end = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype))
    return ((is_end.cumsum(-1) - is_end.long()) == 0).sum(-1)
