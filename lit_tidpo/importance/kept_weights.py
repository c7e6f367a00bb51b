"""Token weights kept between the steps at which they are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.pair_cache import PairCache
from lit_tidpo.structures import ResponseBatch


class WeightCache(PairCache):
    """Weights of each pair and the optimizer step at which they were computed.

    Args:
        refresh_every: Steps for which weights stay fresh; 1 keeps nothing, 0 keeps them for good.
    """

    def lookup(self, batch: ResponseBatch, step: int) -> Tensor | None:
        """Weights of a batch, if those of every pair are there and fresh.

        Args:
            batch: Its pairs are known by ``index``.
            step: Current optimizer step.

        Returns:
            Weights, zero off the response, ``[N, T]``, or None.
        """
        fresh = self._fresh(batch.index, step)
        if fresh is None:
            return None
        weights = torch.zeros(batch.input_ids.shape)
        for pair, rows in enumerate(fresh):
            for role, row in enumerate(rows):
                position = role * batch.size + pair
                start = int(batch.prompt_lengths[position])
                weights[position, start : start + len(row)] = row
        return weights.to(batch.input_ids.device)

    def store(self, batch: ResponseBatch, weights: Tensor, step: int) -> None:
        """Keep the weights of a batch.

        Args:
            batch: Its pairs are known by ``index``.
            weights: ``[N, T]``.
            step: Current optimizer step.
        """
        weights = weights.cpu()
        mask = batch.response_mask.cpu()
        pairs = (range(pair, len(weights), batch.size) for pair in range(batch.size))
        rows = ([weights[row][mask[row]] for row in positions] for positions in pairs)
        self._keep(batch.index, rows, step)
