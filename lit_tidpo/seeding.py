"""Random numbers that depend on their seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Draw from generators of this seed, and leave the global ones as they were.

    Args:
        seed: Seed; None changes nothing.
        device: Device whose generator is seeded besides the CPU's; by default the one that new
            tensors are put on.
    """
    if seed is None:
        yield
        return
    device = device or torch.get_default_device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
