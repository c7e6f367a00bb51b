"""What a run made, and what can be done with it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_tidpo.callbacks.places import log_folder
from lit_tidpo.callbacks.save_config import SaveConfig
from lit_tidpo.modules.preference import PreferenceModule


class RunSummary(Callback):
    """Ends ``fit`` with a few lines: what was trained, where its files are, what to type next."""

    _began = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is trained yet."""
        self._began = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there was something to train, which a complete run has not."""
        self._began = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell it."""
        folder = log_folder(trainer)  # on all ranks
        done = f"trained {_amounts(trainer, pl_module)}"
        lines = [done if self._began else _complete(trainer)]
        if trainer.loggers:
            lines.append(f"curves:     {_shown(folder)}")
        saver = trainer.checkpoint_callback
        file = getattr(saver, "best_model_path", "") or getattr(saver, "last_model_path", "")
        if file:
            checkpoint = _shown(Path(file))
            lines.append(f"checkpoint: {checkpoint}")
            saved = [each for each in vars(trainer)["callbacks"] if isinstance(each, SaveConfig)]
            if saved and isinstance(pl_module, PreferenceModule):
                config = _shown(folder / saved[0].config_filename)
                lines.append(f"next: lit-tidpo predict --config {config} --ckpt_path {checkpoint}")
            lines.append(f"next: lit-tidpo export {checkpoint} exported")
        rank_zero_info("\n".join(lines))


def _complete(trainer: Trainer) -> str:
    """Where a run stands that there was nothing to train of, and how it goes on."""
    ends = {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs}
    set_ends = {name: end for name, end in ends.items() if end not in (None, -1)}
    told = ", ".join(f"trainer.{name}={end}" for name, end in set_ends.items())
    raised = " and ".join(f"--trainer.{name}" for name in set_ends)
    return (
        f"nothing was left to train: the run was complete at step {trainer.global_step} ({told}); "
        f"to go on, raise {raised}"
    )


def _amounts(trainer: Trainer, module: LightningModule) -> str:
    """Parameters, steps, and the rows of the data where their number is known."""
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    amounts = f"{trained:,} parameters in {trainer.global_step:,} steps"
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    if not hasattr(dataset, "__len__"):
        return amounts
    return f"{amounts}, of data with {len(dataset):,} rows"


def _shown(path: Path) -> str:
    """From here, where it lies below, and as a shell takes it."""
    near = os.path.relpath(path)
    return shlex.quote(str(path) if near.startswith("..") else near)
