"""Several batches as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_tidpo.devices.host_rows import HostRows, Rows
from lit_tidpo.structures.batch import ResponseBatch


def joined(batches: Sequence[ResponseBatch]) -> ResponseBatch:
    """Batches of the same single role as one, without what came with the data.

    Args:
        batches: At least one.

    Returns:
        Their rows in order, padded to the longest.
    """
    assert all(len(batch.roles) == 1 for batch in batches)

    def together(each: Sequence[ResponseBatch] | Sequence[HostRows]) -> dict[str, Any]:
        width = max(rows.input_ids.shape[1] for rows in each)
        padded = [pad(rows.input_ids, (0, width - rows.input_ids.shape[1])) for rows in each]
        others = {
            name: torch.cat([getattr(rows, name) for rows in each])
            for name in ("prompt_lengths", "lengths", "index", "counted")
        }
        if any(rows.context is not None for rows in each):
            others["context"] = torch.cat([_wide_context(rows, width) for rows in each])
        return {"input_ids": torch.cat(padded), **others}

    known = HostRows(**together([batch.host for batch in batches]))
    return ResponseBatch(**together(batches), roles=batches[0].roles).known_as(known)


def _wide_context(rows: Rows, width: int) -> Tensor:
    """Which tokens are context, ``[N, width]`` bool."""
    context = rows.context
    if context is None:
        context = torch.zeros_like(rows.input_ids, dtype=torch.bool)
    return pad(context, (0, width - context.shape[1]))
