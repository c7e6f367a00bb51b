"""A progress bar that ends where ``max_steps`` ends the run."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import _RICH_AVAILABLE  # type: ignore[attr-defined]


class _EndsWithSteps(ProgressBar):
    """Counts the batches of the epoch, or those that are left of the run where they are fewer."""

    _left: float = math.inf

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch; Lightning's takes steps for batches where epochs have no end."""
        return min(self.trainer.num_training_batches, self._left)

    def on_train_epoch_start(self, trainer: Trainer, *rest: Any) -> None:
        """Find out how many batches there will be."""
        if trainer.max_steps > 0:
            loop = trainer.fit_loop.epoch_loop
            done = loop.batch_progress.current.completed if loop.restarting else 0
            window = trainer.accumulate_grad_batches
            steps = trainer.max_steps - trainer.global_step
            self._left = done // window * window + steps * window
        super().on_train_epoch_start(trainer, *rest)


class _RichBar(_EndsWithSteps, RichProgressBar):
    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's last epoch of a run that max_steps alone ends is -2.
        return super()._get_train_description(current_epoch).replace("/-2", "")


class _TQDMBar(_EndsWithSteps, TQDMProgressBar):
    pass


def steps_bar() -> ProgressBar:
    """The bar that Lightning would take, but with the right end."""
    return _RichBar() if _RICH_AVAILABLE else _TQDMBar()
