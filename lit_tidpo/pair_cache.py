"""What is kept of each pair between the optimizer steps that make it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class PairCache:
    """Tensors of each pair and the optimizer step that they are from.

    Args:
        refresh_every: Steps for which they stay fresh, the one that made them included; 0 keeps
            them for good.
    """

    def __init__(self, refresh_every: int) -> None:
        self.refresh_every = refresh_every
        self._entries: dict[int, tuple[int, list[Tensor]]] = {}

    def clear(self) -> None:
        """Forget everything: the pairs of another run may have the same numbers."""
        self._entries = {}

    @property
    def is_filled(self) -> bool:
        """Whether anything is kept."""
        return bool(self._entries)

    def _fresh(self, index: Tensor, step: int) -> list[list[Tensor]] | None:
        """Tensors of each pair, if those of every pair are there and fresh."""
        entries = [self._entries.get(pair) for pair in index.tolist()]
        fresh = [entry[1] for entry in entries if entry is not None and self._lasts(entry[0], step)]
        return fresh if len(fresh) == len(entries) else None

    def _lasts(self, made_at: int, step: int) -> bool:
        # What a later step made is from another run.
        return self.refresh_every == 0 or 0 <= step - made_at < self.refresh_every

    def _keep(self, index: Tensor, rows: Iterable[list[Tensor]], step: int) -> None:
        """Keep tensors of each pair, and let go of whatever is stale, so that memory stays small.

        Args:
            index: The pairs, ``[B]``.
            rows: Tensors of each pair, on the CPU and not views of larger ones.
            step: Current optimizer step.
        """
        for pair, tensors in zip(index.tolist(), rows, strict=True):
            self._entries[pair] = (step, tensors)
        if self.refresh_every != 0:
            kept = self._entries.items()
            self._entries = {pair: entry for pair, entry in kept if self._lasts(entry[0], step)}

    def state_dict(self) -> dict[str, Any]:
        """Everything kept, as plain data."""
        return {
            str(pair): {"step": step, "rows": rows} for pair, (step, rows) in self._entries.items()
        }

    def update(self, state: dict[str, Any]) -> None:
        """Add what :meth:`state_dict` returned."""
        for pair, entry in state.items():
            self._entries[int(pair)] = (entry["step"], list(entry["rows"]))
