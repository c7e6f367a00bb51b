"""Anchors sampled in bulk and kept for the steps that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lit_tidpo.pair_cache import PairCache
from lit_tidpo.sampling.generation import AnchorOptions, sample_anchors
from lit_tidpo.structures import ResponseBatch, joined


class AnchorCache(PairCache):
    """Sampled responses of each pair and the optimizer step whose policy sampled them.

    Args:
        options: How to sample, and for how many steps to keep.
    """

    def __init__(self, options: AnchorOptions) -> None:
        super().__init__(options.reuse_steps)
        self.options = options

    def anchors(
        self,
        policy: Any,
        batch: ResponseBatch,
        step: int,
        on_any_rank: Callable[[bool], bool] | None = None,
    ) -> ResponseBatch:
        """Anchors of a batch, as kept or sampled now.

        A batch that announces others starts a window: all of it is sampled in one go. Any other
        batch is sampled, as a whole, only where a pair of it has no fresh anchor.

        Args:
            policy: The model, with ``generate``.
            batch: Rows with the role ``chosen``; its pairs are known by ``index``.
            step: Current optimizer step.
            on_any_rank: For sharded models, which ranks can only run together: whether something
                holds on any of them.

        Returns:
            As :func:`lit_tidpo.sampling.generation.sample_anchors` returns them.
        """
        kept = None if batch.upcoming else self.lookup(batch, step)
        missing = kept is None
        if on_any_rank is not None:
            missing = on_any_rank(missing)
        if missing:
            window = joined([batch.role("chosen"), *batch.upcoming])
            synced = on_any_rank is not None
            self.store(sample_anchors(policy, window, self.options, synced), step)
            kept = self.lookup(batch, step)
        assert kept is not None
        return kept

    def lookup(self, batch: ResponseBatch, step: int) -> ResponseBatch | None:
        """Anchors of a batch, if those of every pair are there and fresh."""
        responses = self._fresh(batch.index, step)
        if responses is None:
            return None
        chosen = batch.role("chosen")
        prompts = zip(chosen.input_ids.cpu(), chosen.prompt_lengths.tolist(), strict=True)
        rows = [
            torch.cat([ids[:length], response])
            for (ids, length), (response,) in zip(prompts, responses, strict=True)
        ]
        device = batch.input_ids.device
        return ResponseBatch(
            input_ids=pad_sequence(rows, batch_first=True).to(device),
            prompt_lengths=chosen.prompt_lengths,
            lengths=torch.tensor([len(row) for row in rows], device=device),
            roles=("anchor",),
            index=batch.index,
            counted=batch.counted,
        )

    def store(self, anchors: ResponseBatch, step: int) -> None:
        """Keep the responses of anchors; their prompts are those of the pairs."""
        tokens = zip(anchors.input_ids.cpu(), anchors.response_mask.cpu(), strict=True)
        self._keep(anchors.index, ([row[is_response]] for row, is_response in tokens), step)
