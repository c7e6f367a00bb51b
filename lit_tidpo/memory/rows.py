"""Batches by the lengths of their rows alone, as memory does not hang on the tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.errors import InputError
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.structures import ResponseBatch

_MOST_BATCHES = 2000
"""Batches of the data that are read at the most."""


class PairLengths(NamedTuple):
    """Tokens of a pair's prompt and responses."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def tokens(self) -> int:
        """Tokens with the prompt once."""
        return sum(self)


def pairs_batch(pairs: Sequence[PairLengths]) -> ResponseBatch:
    """A batch of pairs of these lengths."""
    prompts = torch.tensor([pair.prompt for pair in pairs])
    responses = torch.tensor([each for place in (1, 2) for each in (pair[place] for pair in pairs)])
    lengths = prompts.repeat(2) + responses
    shape = (len(lengths), int(lengths.max()))
    return ResponseBatch(
        input_ids=torch.zeros(shape, dtype=torch.long),
        prompt_lengths=prompts.repeat(2),
        lengths=lengths,
        roles=("chosen", "rejected"),
        index=torch.arange(len(pairs)),
        counted=torch.ones(len(pairs), dtype=torch.bool),
        supplied_weights=torch.zeros(shape),
        rewards=torch.zeros(len(lengths)),
        behaviour_logps=torch.zeros(shape),
    )


def largest_batch(data: PreferenceDataModule) -> list[PairLengths]:
    """The training batch of the first epoch that has the most tokens.

    Args:
        data: Not set up yet.

    Raises:
        InputError: If it holds no pairs.
    """
    data.setup("fit")
    if not data.is_paired:
        raise InputError("memory is estimated of pairs, but the data hold single responses")
    batches = map(_lengths, itertools.islice(data.train_dataloader(), _MOST_BATCHES))
    return max(batches, key=lambda pairs: sum(pair.tokens for pair in pairs))


def _lengths(batch: ResponseBatch) -> list[PairLengths]:
    responses = (batch.lengths - batch.prompt_lengths).view(2, -1)
    columns = (batch.prompt_lengths[: batch.size].tolist(), *responses.tolist())
    return [PairLengths(*pair) for pair in zip(*columns, strict=True)]


def longest_anchors(batch: ResponseBatch, options: AnchorOptions) -> ResponseBatch:
    """Anchors of a batch's prompts that are as long as they can be."""
    rows = batch.role(batch.roles[0])
    kept = 0
    if options.source == "chosen_prefix":
        kept = int(options.prefix_fraction * int((rows.lengths - rows.prompt_lengths).max()))
    lengths = rows.prompt_lengths + kept + options.max_new_tokens
    return ResponseBatch(
        input_ids=torch.zeros(len(lengths), int(lengths.max()), dtype=torch.long),
        prompt_lengths=rows.prompt_lengths,
        lengths=lengths,
        roles=("anchor",),
        index=rows.index,
        counted=rows.counted,
        sampled=True,
    )
