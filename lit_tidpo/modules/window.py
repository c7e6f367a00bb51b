"""Means over the examples of a window of accumulated batches."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Trainer
from torch import Tensor, nn


class AccumulationWindow:
    """Makes the gradient that of the mean over all examples of a window, on all ranks.

    DDP averages over ranks and Lightning divides by ``accumulate_grad_batches``, whatever the
    amounts on a rank and in a batch, and however short the last window. Losses are given in the
    unit of the window's first batch; :meth:`close` then scales their gradients.
    """

    def __init__(self) -> None:
        self._amounts: list[float] = []

    def loss(self, values: Tensor, amount: float, trainer: Trainer) -> Tensor:
        """Loss of one batch.

        Args:
            values: Sums to average, ``[B]``.
            amount: What they count for.
            trainer: Knows the ranks.

        Returns:
            Scalar to backpropagate.
        """
        if trainer.world_size > 1:
            here = values.new_full((), amount)
            total = trainer.strategy.reduce(here, reduce_op="sum")
            amount = float(total / trainer.world_size)
        self._amounts.append(max(amount, 1e-9))
        return values.sum() / self._amounts[0]

    def close(self, parameters: Iterable[nn.Parameter], accumulated: int) -> None:
        """Finish the gradients of the window.

        Args:
            parameters: What has gradients.
            accumulated: Batches by which Lightning divided, ``accumulate_grad_batches``.
        """
        factor = accumulated * self._amounts[0] / sum(self._amounts)
        if factor != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self._amounts.clear()

    def drop(self) -> None:
        """Forget a window that was left half."""
        self._amounts.clear()
