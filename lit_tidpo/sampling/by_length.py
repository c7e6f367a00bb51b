"""Batches cut into prompts of one length, which need no padding, and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_tidpo.structures import ResponseBatch, joined


def of_each_length(rows: ResponseBatch, lengths: Tensor) -> list[tuple[Tensor, ResponseBatch]]:
    """Rows of a single role, for each of their lengths.

    Args:
        rows: Rows of one role.
        lengths: Of what has to be alike, ``[B]``.

    Returns:
        Places of the rows, and the rows, without what came with the data.
    """
    parts = []
    for length in sorted(set(lengths.tolist())):
        places = (lengths == length).nonzero().squeeze(-1)
        part = ResponseBatch(
            input_ids=rows.input_ids[places],
            prompt_lengths=rows.prompt_lengths[places],
            lengths=rows.lengths[places],
            roles=rows.roles,
            index=rows.index[places],
            counted=rows.counted[places],
        )
        parts.append((places, part))
    return parts


def in_order(parts: Sequence[tuple[Tensor, ResponseBatch]]) -> ResponseBatch:
    """Samples for the rows at these places as one batch, role by role."""
    roles = parts[0][1].roles
    whole = joined([part.role(role) for role in roles for _, part in parts])
    order = torch.cat([places for places, _ in parts]).argsort()
    rows = torch.cat([order + place * len(order) for place in range(len(roles))])
    return dataclasses.replace(
        whole,
        input_ids=whole.input_ids[rows],
        prompt_lengths=whole.prompt_lengths[rows],
        lengths=whole.lengths[rows],
        roles=roles,
        index=whole.index[order],
        counted=whole.counted[order],
        sampled=True,
    )
