"""Token weights kept between the steps at which they are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.devices.host_rows import to_device
from lit_tidpo.pair_cache import PairCache
from lit_tidpo.structures import ResponseBatch


class KeptWeights(PairCache):
    """Weights of each prompt's responses and the optimizer step at which they were computed.

    Args:
        refresh_every: Steps for which weights stay fresh; 1 keeps nothing, 0 keeps them for good.
    """

    def lookup(self, batch: ResponseBatch, step: int) -> Tensor | None:
        """Weights of a batch, if those of every prompt are there and fresh.

        Args:
            batch: Its prompts are known by ``index``.
            step: Current optimizer step.

        Returns:
            Weights, zero off the response, ``[N, T]``, or None.
        """
        fresh = self._fresh(batch.host.index, step)
        if fresh is None:
            return None
        weights = torch.zeros(batch.input_ids.shape)
        mask = batch.host.response_mask
        for prompt, rows in zip(self._rows_of_prompts(batch), fresh, strict=True):
            for position, row in zip(prompt, rows, strict=True):
                weights[position, mask[position]] = row
        return to_device(weights, batch.input_ids.device)

    def store(self, batch: ResponseBatch, weights: Tensor, step: int) -> None:
        """Keep the weights of a batch.

        Args:
            batch: Its prompts are known by ``index``.
            weights: ``[N, T]``.
            step: Current optimizer step.
        """
        weights, mask = weights.detach().cpu(), batch.host.response_mask
        prompts = self._rows_of_prompts(batch)
        rows = ([weights[row][mask[row]] for row in positions] for positions in prompts)
        self._keep(batch.host.index, rows, step)

    def _rows_of_prompts(self, batch: ResponseBatch) -> list[list[int]]:
        """Rows of each prompt, role by role."""
        owner = batch.of_rows(torch.arange(batch.size)).tolist()
        rows: list[list[int]] = [[] for _ in range(batch.size)]
        for row, prompt in enumerate(owner):
            rows[prompt].append(row)
        return rows
