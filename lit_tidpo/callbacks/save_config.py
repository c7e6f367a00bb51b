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
        if not self.already_saved:
            self._folder = log_folder(trainer)  # by all ranks
            free = free_file(self._folder / "config.yaml").name
            self.config_filename = trainer.strategy.broadcast(free)
            self.save_to_log_dir = False  # Lightning's takes loggers without a folder for a mistake
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it without the values of secrets; rank 0 alone comes here."""
        text = self.parser.dump(self.config, skip_none=False)
        given = yaml.safe_load(text)
        clean = without_secrets(given)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / self.config_filename
        if clean != given:
            rank_zero_warn(f"{str(file)!r} is saved without its secrets, which stand as ***")
            text = yaml.safe_dump(clean, sort_keys=False)
        file.write_text(text, encoding="utf-8")
