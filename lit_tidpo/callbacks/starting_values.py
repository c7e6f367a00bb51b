"""Curves that start where the run does."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StartingValues(Callback):
    """Logs at step 0 what was measured before the first step.

    ``train/*`` of the first step's batches, which the loggers would have of every
    ``log_every_n_steps``-th step alone, and ``val/*`` where the whole validation split is measured
    first: ``trainer.num_sanity_val_steps: -1``.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start over."""
        self._told = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a whole validation before training."""
        if trainer.sanity_checking and trainer.num_sanity_val_batches == trainer.num_val_batches:
            _log(trainer, "val/")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the first step, unless the loggers do."""
        first = trainer.global_step == 1 and not self._told
        self._told |= first
        if first and vars(trainer)["log_every_n_steps"] != 1:
            _log(trainer, "train/")


def _log(trainer: Trainer, prefix: str) -> None:
    values = trainer.callback_metrics.items()  # on all ranks
    found = {name: float(value) for name, value in values if name.startswith(prefix)}
    for logger in trainer.loggers if found else []:
        logger.log_metrics(found, step=0)
