"""Checks of values on a device, which wait for it once for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class DeferredChecks:
    """What has to hold of values that may not be computed yet, in the order of its telling.

    Example:
        >>> checks = DeferredChecks()
        >>> checks.expect(torch.tensor([1, 2]).gt(0).all(), ValueError("not positive"))
        >>> checks.settle()
    """

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, Exception | Callable[[], Exception]]] = []

    def expect(self, holds: Tensor, error: Exception | Callable[[], Exception]) -> None:
        """Note what has to hold.

        Args:
            holds: One bool, ``[]``.
            error: What is raised where it does not hold, or what makes it.
        """
        self._open.append((holds, error))

    def settle(self) -> None:
        """Wait, and raise the error of the first check that does not hold."""
        noted, self._open = self._open, []
        found = torch.stack([holds for holds, _ in noted]).tolist() if noted else []
        for holds, (_, error) in zip(found, noted, strict=True):
            if not holds:
                raise error if isinstance(error, Exception) else error()
