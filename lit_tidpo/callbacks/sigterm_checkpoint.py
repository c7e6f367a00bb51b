"""Save what was trained when the process is asked to end."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_tidpo.callbacks.places import log_folder


class SigtermCheckpoint(Callback):
    """Writes ``last-sigterm.ckpt`` among the run's checkpoints at SIGTERM, after the step.

    Only where the Trainer saves checkpoints at all. ``fit --ckpt_path last`` goes on from there.
    """

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save, if the exception stands for SIGTERM in ``fit`` and there is anything to save."""
        # Not trainer.training: the signal may come while a validation within fit runs.
        fits = trainer.state.fn == TrainerFn.FITTING
        saves = trainer.checkpoint_callback is not None and fits
        if isinstance(exception, SIGTERMException) and saves and trainer.global_step:
            beside = getattr(trainer.checkpoint_callback, "dirpath", None)
            folder = Path(beside) if beside else log_folder(trainer) / "checkpoints"
            file = folder / "last-sigterm.ckpt"
            trainer.save_checkpoint(file)
            rank_zero_info(f"SIGTERM: saved {file}; go on with --ckpt_path {file}")
