"""What the host knows of rows that lie on a device.

Lengths decide the shapes of all that is computed. Where the host asks a device for them, it waits
until everything is done that it has sent there, and the device then stands idle until it has sent
more. So rows keep what they are on the host beside what they are on the device, and indices are
made on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Rows:
    """Right-padded rows of ``prompt + response`` tokens.

    Attributes:
        input_ids: Token ids, ``[N, T]``.
        prompt_lengths: Tokens of the prompt in each row, ``[N]``.
        lengths: Tokens of prompt and response in each row, ``[N]``.
        context: True at tokens within a response that others said, turns of the user between turns
            of the assistant, ``[N, T]`` bool; off the response it does not count. None for
            responses that hold no such tokens.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    context: Tensor | None = field(default=None, kw_only=True)

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
        """True at the tokens of the response that are no context, ``[N, T]`` bool."""
        mask = self.attention_mask & (self.positions >= self.prompt_lengths[:, None])
        return mask if self.context is None else mask & ~self.context


@dataclass
class HostRows(Rows):
    """Rows on the host, and whose they are.

    Attributes:
        index: Position of each group in its data set, ``[B]``.
        counted: False for a group that only fills up a distributed batch, ``[B]`` bool.
        desirable: Whether each response is desirable, ``[N]`` bool, or None.
    """

    index: Tensor
    counted: Tensor
    desirable: Tensor | None = None


class Places:
    """Some tokens of rows: a mask on the host, and where they stand on the device.

    Args:
        mask: ``[N, T]`` or ``[K]`` bool, on the host.
        device: Where they are taken from.

    Example:
        >>> places = Places(torch.tensor([[False, True], [True, False]]), torch.device("cpu"))
        >>> places.of(torch.tensor([[1, 2], [3, 4]]))
        tensor([2, 3])
        >>> places.table(torch.tensor([7, 8]))
        tensor([[0, 7],
                [8, 0]])
    """

    def __init__(self, mask: Tensor, device: torch.device) -> None:
        self.mask = mask
        self.device = device
        self._flat = mask.flatten().nonzero().squeeze(-1)

    def __len__(self) -> int:
        return len(self._flat)

    @cached_property
    def index(self) -> Tensor:
        """Their places among all, row after row, ``[M]``."""
        return to_device(self._flat, self.device)

    def of(self, values: Tensor) -> Tensor:
        """Their values ``[M, ...]``, of ``[N, T, ...]`` or ``[K, ...]``."""
        return values.flatten(0, self.mask.dim() - 1).index_select(0, self.index)

    def table(self, values: Tensor) -> Tensor:
        """Values of theirs, ``[M, ...]``, among zeros, ``[N, T, ...]`` or ``[K, ...]``."""
        shape = values.shape[1:]
        zeros = values.new_zeros(self.mask.numel(), *shape)
        return zeros.index_copy(0, self.index, values).view(*self.mask.shape, *shape)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, which nobody waits for."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
