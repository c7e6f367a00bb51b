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

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell it."""
        folder = log_folder(trainer)  # on all ranks
        lines = [f"trained {_amounts(trainer, pl_module)}"]
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


def _amounts(trainer: Trainer, module: LightningModule) -> str:
    """Parameters, pairs where their number is known, and steps."""
    trained = [each for each in module.parameters() if each.requires_grad]
    amounts = [f"{sum(each.numel() for each in trained):,} parameters"]
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    if hasattr(dataset, "__len__"):
        amounts.append(f"on {len(dataset):,} rows")
    return " ".join([*amounts, f"in {trainer.global_step:,} steps"])


def _shown(path: Path) -> str:
    """From here, where it lies below, and as a shell takes it."""
    near = os.path.relpath(path)
    return shlex.quote(str(path) if near.startswith("..") else near)
