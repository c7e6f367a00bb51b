"""Batches as another loader would make them."""

from __future__ import annotations

import dataclasses

import torch


def take(batch, pairs, width=None):
    """Some of the pairs, in another order and, where given, another width."""
    rows = [pair + role * batch.size for role in range(2) for pair in pairs]
    width = width or batch.input_ids.shape[1]
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    kept = min(width, batch.input_ids.shape[1])
    ids[:, :kept] = batch.input_ids[rows, :kept]
    return dataclasses.replace(
        batch,
        input_ids=ids,
        prompt_lengths=batch.prompt_lengths[rows],
        lengths=batch.lengths[rows],
        index=batch.index[pairs],
        counted=batch.counted[pairs],
        supplied_weights=None,
    )
