"""Save what was trained, and queue the job again, when SLURM's time is up."""

from __future__ import annotations

import signal
from typing import Any, cast

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer


class SlurmRequeue(Callback):
    """Writes ``hpc_ckpt_N.ckpt`` and requeues at SLURM's signal, after the optimizer step.

    Lightning does so in the signal's handler: in the middle of a step, whose rows would be trained
    on twice or not at all, and at another place in each process, which then wait for each other.
    Here the handler only takes note; the job is queued again once, whichever processes were told.
    The signal is that of Lightning's ``SLURMEnvironment``, by default SIGUSR1.
    """

    def __init__(self) -> None:
        self._told = False
        self._requeued = False
        self._signal: signal.Signals | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signal before Lightning does, which leaves it to whoever has it."""
        environment = trainer._accelerator_connector.cluster_environment
        if stage != "fit" or not isinstance(environment, SLURMEnvironment):
            return
        asked = environment.requeue_signal
        if asked is None or not environment.auto_requeue:
            return
        taken = signal.getsignal(asked)
        if taken is None or taken == signal.SIG_DFL:
            self._told = self._requeued = False
            self._signal = asked
            signal.signal(asked, self._take_note)

    def _take_note(self, *_: Any) -> None:
        self._told = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save and requeue by Lightning's own code, if any process was told to."""
        if (
            self._signal is None
            or self._requeued
            or trainer.fit_loop.epoch_loop._should_accumulate()
        ):
            return
        if trainer.strategy.reduce_boolean_decision(self._told, all=False):
            self._requeued = True
            trainer._signal_connector._slurm_sigusr_handler_fn(self._signal, cast(Any, None))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signal back."""
        if self._signal is not None:
            signal.signal(self._signal, signal.SIG_DFL)
            self._signal = None
