"""Token weights kept between the steps at which they are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_tidpo.structures import ResponseBatch


class WeightCache:
    """Weights of each pair and the optimizer step at which they were computed.

    Args:
        refresh_every: Steps for which weights stay fresh; 1 keeps nothing, 0 keeps them for good.
    """

    def __init__(self, refresh_every: int) -> None:
        self.refresh_every = refresh_every
        self._entries: dict[int, tuple[int, list[Tensor]]] = {}

    @property
    def is_filled(self) -> bool:
        """Whether any weights are kept."""
        return bool(self._entries)

    def lookup(self, batch: ResponseBatch, step: int) -> Tensor | None:
        """Weights of a batch, if those of every pair are there and fresh.

        Args:
            batch: Its pairs are known by ``index``.
            step: Current optimizer step.

        Returns:
            Weights, zero off the response, ``[N, T]``, or None.
        """
        entries = [self._entries.get(index) for index in batch.index.tolist()]
        fresh = [entry for entry in entries if entry is not None and self._is_fresh(entry[0], step)]
        if len(fresh) < len(entries):
            return None
        weights = torch.zeros(batch.input_ids.shape)
        for pair, (_, rows) in enumerate(fresh):
            for role, row in enumerate(rows):
                position = role * batch.size + pair
                start = int(batch.prompt_lengths[position])
                weights[position, start : start + len(row)] = row
        return weights.to(batch.input_ids.device)

    def _is_fresh(self, computed_at: int, step: int) -> bool:
        return self.refresh_every == 0 or step - computed_at < self.refresh_every

    def store(self, batch: ResponseBatch, weights: Tensor, step: int) -> None:
        """Keep the weights of a batch.

        Args:
            batch: Its pairs are known by ``index``.
            weights: ``[N, T]``.
            step: Current optimizer step.
        """
        weights = weights.cpu()
        mask = batch.response_mask.cpu()
        for pair, index in enumerate(batch.index.tolist()):
            rows = range(pair, len(weights), batch.size)
            self._entries[index] = (step, [weights[row][mask[row]] for row in rows])

    def state_dict(self) -> dict[str, Any]:
        """Everything kept, as plain data."""
        return {
            str(index): {"step": step, "rows": rows}
            for index, (step, rows) in self._entries.items()
        }

    def update(self, state: dict[str, Any]) -> None:
        """Add what :meth:`state_dict` returned."""
        for index, entry in state.items():
            self._entries[int(index)] = (entry["step"], list(entry["rows"]))
