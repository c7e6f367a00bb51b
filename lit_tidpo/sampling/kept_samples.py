"""Responses sampled in bulk and kept for the steps that use them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lit_tidpo.pair_cache import PairCache
from lit_tidpo.sampling.base import OnAnyRank, Sampler, sampled_batch
from lit_tidpo.structures import ResponseBatch, joined


class KeptSamples(PairCache, Sampler):
    """Sampled responses of each prompt and the optimizer step whose policy wrote them.

    Args:
        sampler: Writes them.
        reuse_steps: Optimizer steps for which they are kept.
    """

    def __init__(self, sampler: Sampler, reuse_steps: int) -> None:
        super().__init__(reuse_steps)
        self.sampler = sampler

    def sample(
        self,
        policy: Any,
        batch: ResponseBatch,
        count: int = 1,
        step: int = 0,
        on_any_rank: OnAnyRank | None = None,
    ) -> ResponseBatch:
        """Responses as kept, or sampled now; see :meth:`Sampler.sample`.

        A batch that announces others starts a window: all of it is sampled in one go. Any other
        batch is sampled, as a whole, only where a prompt of it has no fresh responses.
        """
        kept = None if batch.upcoming else self.lookup(batch, count, step)
        missing = kept is None
        if on_any_rank is not None:
            missing = on_any_rank(missing)
        if missing:
            window = joined([batch.role(batch.roles[0]), *batch.upcoming])
            self.store(self.sampler.sample(policy, window, count, step, on_any_rank), step)
            kept = self.lookup(batch, count, step)
        assert kept is not None
        return kept

    def lookup(self, batch: ResponseBatch, count: int, step: int) -> ResponseBatch | None:
        """Responses to a batch, if those of every prompt are there and fresh."""
        kept = self._fresh(batch.host.index, step)
        if kept is None or any(len(responses) != count for responses in kept):
            return None
        first = batch.role(batch.roles[0])
        host = first.host
        prompts = [
            ids[:length]
            for ids, length in zip(host.input_ids, host.prompt_lengths.tolist(), strict=True)
        ]
        rows = [
            torch.cat([prompt, responses[place]])
            for place in range(count)
            for prompt, responses in zip(prompts, kept, strict=True)
        ]
        known = dataclasses.replace(
            host,
            input_ids=pad_sequence(rows, batch_first=True),
            prompt_lengths=host.prompt_lengths.repeat(count),
            lengths=torch.tensor([len(row) for row in rows]),
        )
        return sampled_batch(first, known, count)

    def store(self, samples: ResponseBatch, step: int) -> None:
        """Keep sampled responses; their prompts are those of the data."""
        host = samples.host
        responses = [row[own] for row, own in zip(host.input_ids, host.response_mask, strict=True)]
        size = samples.size
        self._keep(host.index, (responses[prompt::size] for prompt in range(size)), step)
