"""Gradients for importance where Lightning runs without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lit_tidpo.models.needs import find


def takes_gradients(needs: frozenset[str]) -> bool:
    """Whether one of these results is made by a backward pass."""
    return any(find(need).attributed for need in needs)


@contextmanager
def attributable(needed: bool) -> Iterator[None]:
    """Enable gradients where a graph is asked for.

    Lightning validates in inference mode, and within fit without gradients.
    """
    if not needed:
        yield
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield
