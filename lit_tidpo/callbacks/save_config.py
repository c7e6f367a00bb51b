"""The configuration of a run, beside its logs."""

from __future__ import annotations

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from lit_tidpo.callbacks.places import free_file, log_folder
from lit_tidpo.plugins.configurations import without_secrets


class SaveConfig(SaveConfigCallback):
    """Saves the configuration of each run, beside those of earlier runs in the same folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save under the first name that is free: ``config.yaml``, ``config-1.yaml``, ..."""
        folder = self._folder = log_folder(trainer)
        free = free_file(folder / "config.yaml").name
        self.config_filename = trainer.strategy.broadcast(free)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the values of secrets out of what was saved; rank 0 alone comes here."""
        file = self._folder / self.config_filename
        if file.exists():
            saved = yaml.safe_load(file.read_text(encoding="utf-8"))
            clean = without_secrets(saved)
            if clean != saved:
                rank_zero_warn(f"{str(file)!r} is saved without its secrets, which stand as ***")
                file.write_text(yaml.safe_dump(clean, sort_keys=False), encoding="utf-8")
