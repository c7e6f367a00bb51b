"""How long the training steps of a run take."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class TrainingClock(Callback):
    """Logs the seconds of all training steps, data loading and validation left out.

    ``cost/cpu_seconds`` is processor time of the process, ``cost/wall_seconds`` time on the clock,
    which other processes lengthen.
    """

    def __init__(self) -> None:
        self._started = (0.0, 0.0)
        self._cpu = self._wall = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._started = (time.process_time(), time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self._cpu += time.process_time() - self._started[0]
        self._wall += time.perf_counter() - self._started[1]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the sums."""
        seconds = {"cost/cpu_seconds": self._cpu, "cost/wall_seconds": self._wall}
        for logger in trainer.loggers:
            logger.log_metrics(seconds, step=trainer.global_step)
            logger.save()
