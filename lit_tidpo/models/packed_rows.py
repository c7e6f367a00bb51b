"""Tokens of many rows side by side, without padding between them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from lit_tidpo.devices.host_rows import Places, to_device
from lit_tidpo.structures import ResponseBatch


class PackedRows:
    """Which of the packed tokens form a row, and what stands before them.

    Not a dataclass: FSDP would hand each layer a copy, and what a layer keeps would be lost.

    Which they are is known on the host, so that nothing here waits for a device.

    Args:
        taken: Tokens of the rows that are packed, row by row, ``[N, T]`` bool, on the host; in each
            row they are neighbours.
        batch: The rows, which tell whose prompt each continues.
        prompts: Prompts of the batch that were run before.
        states: Keys and values of these rows by layer, ``[heads, M, D]``, if they are to be kept.

    Attributes:
        taken: Places of the packed tokens.
        positions: Position of each packed token in its row, ``[1, M]``.
        lengths: Packed tokens of each row, ``[N]``, on the host.
        before: Tokens of its prompt that were run before, ``[N]``, on the host.
        width: Packed tokens of the longest row.
        span: Tokens of the longest row and its prompt.
        end: Of prompts, a 0 that hangs on all that was computed of them, added to what hangs
            on the keys and values that they leave. Sharded layers are gathered again when a
            gradient reaches what they hand out, not what they leave.
    """

    end: Tensor | None = None

    def __init__(
        self,
        taken: Tensor,
        batch: ResponseBatch,
        prompts: PackedRows | None = None,
        states: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.device = batch.input_ids.device
        self.taken = Places(taken, self.device)
        self.batch = batch
        self.prompts = prompts
        self.states = states
        self.positions = to_device(taken.nonzero()[:, 1].unsqueeze(0), self.device)
        self.lengths = taken.sum(-1)
        self.width = int(self.lengths.max())
        if prompts is None:
            self.before = torch.zeros_like(self.lengths)
        else:
            self.before = batch.of_rows(prompts.lengths)
        self.span = int((self.before + self.lengths).max())
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    @property
    def on_gpu(self) -> bool:
        """Whether there may be a kernel for rows side by side."""
        return self.device.type == "cuda"

    @cached_property
    def slots(self) -> Tensor:
        """Place of each packed token among rows that start with their prompts, ``[M]``."""
        return self._slots(self.lengths, self.span, self.before)

    @cached_property
    def own_slots(self) -> Tensor:
        """Place of each packed token among rows without their prompts, ``[M]``."""
        return self._slots(self.lengths, self.width)

    @cached_property
    def _prompt_slots(self) -> Tensor:
        return self._slots(self.before, self.span)

    def _slots(self, lengths: Tensor, width: int, starts: Tensor | int = 0) -> Tensor:
        """Places in ``[N * width]`` of tokens that fill each row from its start on."""
        places = torch.arange(width)
        starts = torch.as_tensor(starts).expand(lengths.shape)[:, None]
        inside = (places >= starts) & (places < starts + lengths[:, None])
        return Places(inside, self.device).index

    @cached_property
    def query_starts(self) -> Tensor:
        """Where each row starts among the packed tokens, and their number, ``[N + 1]``."""
        return to_device(_starts(self.lengths), self.device)

    @cached_property
    def key_starts(self) -> Tensor:
        """Where each row starts among the keys, its prompt first, and their number, ``[N + 1]``."""
        return to_device(_starts(self.before + self.lengths), self.device)

    @cached_property
    def _prompt_parts(self) -> list[Tensor]:
        """For each role the places of its prompts' tokens among those of all prompts."""
        assert self.prompts is not None
        owner = self.prompts.taken.mask.nonzero()[:, 0]
        holders = self.batch.holders or [range(self.batch.size)] * len(self.batch.roles)
        return [torch.isin(owner, torch.tensor(held)).nonzero().squeeze(-1) for held in holders]

    @cached_property
    def _key_order(self) -> Tensor:
        """For each key its place among the prompts' tokens followed by the packed ones."""
        assert self.prompts is not None
        own = len(self.prompts.taken) + torch.arange(len(self.taken))
        rows = torch.arange(len(self.lengths))
        owners = [rows.repeat_interleave(each) for each in (self.before, self.lengths)]
        order = torch.cat(owners).argsort(stable=True)
        return to_device(torch.cat([*self._prompt_parts, own])[order], self.device)

    def keys_side_by_side(self, packed: Tensor, layer: int, which: int) -> Tensor:
        """Keys (0) or values (1), row by row with the prompt first, ``[K, heads, D]``."""
        if self.prompts is None:
            return packed.transpose(0, 1)
        assert self.prompts.states is not None
        before = self.prompts.states[layer][which]
        together = torch.cat([before.transpose(0, 1), packed.transpose(0, 1)])
        return together.index_select(0, self._key_order)

    @cached_property
    def _moved_parts(self) -> list[Tensor]:
        return [to_device(part, self.device) for part in self._prompt_parts]

    def _of_rows(self, of_prompts: Tensor) -> Tensor:
        """Tokens of the prompts, ``[heads, M, D]``, for each row."""
        if self.batch.holders is None:
            return of_prompts.repeat(1, len(self.batch.roles), 1)
        return torch.cat([of_prompts.index_select(1, part) for part in self._moved_parts], 1)

    def is_square(self, window: int | None) -> bool:
        """Whether queries are laid out as the keys are, prompts included but left zero.

        The plain causal kernel then does without a mask, and without what lies above the diagonal:
        half a square of prompt and response is less than a rectangle while prompts are the shorter.
        """
        return window is None and self.span <= 2 * self.width

    def queries(self, packed: Tensor, window: int | None) -> Tensor:
        """Packed tokens ``[heads, M, D]`` as rows ``[N, heads, S or R, D]``."""
        if self.is_square(window):
            return _lay_out(packed, self.slots, len(self.lengths), self.span)
        return _lay_out(packed, self.own_slots, len(self.lengths), self.width)

    def keys(self, packed: Tensor, layer: int, which: int) -> Tensor:
        """Keys (0) or values (1) of the prompt and the row itself, ``[N, heads, S, D]``."""
        if self.prompts is None:
            return _lay_out(packed, self.slots, len(self.lengths), self.span)
        assert self.prompts.states is not None
        before = self._of_rows(self.prompts.states[layer][which])
        tokens, slots = torch.cat([before, packed], 1), torch.cat([self._prompt_slots, self.slots])
        return _lay_out(tokens, slots, len(self.lengths), self.span)

    def pack(self, rows: Tensor, window: int | None) -> Tensor:
        """Rows ``[N, S or R, heads, D]`` to packed tokens ``[1, M, heads, D]``."""
        slots = self.slots if self.is_square(window) else self.own_slots
        return rows.flatten(0, 1).index_select(0, slots).unsqueeze(0)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores, ``[N, 1, R, S]``; None for the plain causal mask.

        Added, as SDPA would make such a one of a mask of bools in each layer again, and keep it.

        Args:
            window: Number of positions that a token sees, itself included; None sees all.
            dtype: That of the queries.
        """
        if self.is_square(window):
            return None  # what pads a row stands behind its tokens, where no token looks
        if (window, dtype) not in self._masks:
            device = self.device
            before = to_device(self.before, device)[:, None]
            queries = before + torch.arange(self.width, device=device)
            keys = torch.arange(self.span, device=device)
            hidden = keys > queries[:, :, None]
            if window is not None:
                hidden |= keys <= queries[:, :, None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
            self._masks[window, dtype] = mask.masked_fill_(hidden, -torch.inf).unsqueeze(1)
        return self._masks[window, dtype]


def _starts(lengths: Tensor) -> Tensor:
    """Sums of the lengths before each row, and of all, int32."""
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def _lay_out(packed: Tensor, slots: Tensor, count: int, width: int) -> Tensor:
    """Packed tokens ``[heads, M, D]`` at their places, zero elsewhere, ``[N, heads, W, D]``."""
    heads, _, size = packed.shape
    rows = packed.new_zeros(count * width, heads, size)
    rows = rows.index_copy(0, slots, packed.transpose(0, 1))
    return rows.view(count, width, heads, size).transpose(1, 2)
