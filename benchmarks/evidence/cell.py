"""One cell of the grid: train and test by the command line, then generate."""

from __future__ import annotations

import csv
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.evidence.generation import generated_metrics
from lit_tidpo.cli import main
from lit_tidpo.locations import locate
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.tokenizer import policy_tokenizer

Log = list[dict[str, str]]
"""Rows of the CSV file of metrics."""


class TrainingClock(Callback):
    """Logs the processor time of all training steps, data loading and validation left out."""

    seconds = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.seconds -= time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self.seconds += time.process_time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the sum."""
        for logger in trainer.loggers:
            logger.log_metrics({"cost/cpu_seconds": self.seconds}, step=trainer.global_step)
            logger.save()


class HalfwayCheckpoint(Callback):
    """Keeps the policy after half of the steps beside the last one, as ``halfway.ckpt``."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save it once, when the step that was due has been made."""
        path = Path(trainer.default_root_dir) / "halfway.ckpt"
        if trainer.global_step == trainer.estimated_stepping_batches // 2 and not path.exists():
            trainer.save_checkpoint(path, weights_only=True)


def run_cell(
    folder: Path,
    configs: list[dict[str, Any]],
    args: list[str],
    train: bool,
    generation: dict[str, Any],
) -> dict[str, Any]:
    """Train (else the policy is measured as it starts), test and generate.

    Returns:
        ``metrics`` after training by name, and ``losses``, the total one of each training step.
    """
    model, rows = locate(configs[0]["model"]["policy"]["path"]), []
    if train:
        model, rows = str(folder / "model"), train_policy(folder, configs, args)
        args = [*args, f"--ckpt_path={folder / 'policy.ckpt'}"]
    rows += _command("test", folder, configs, args)
    last = {name: float(value) for row in rows for name, value in row.items() if value}
    metrics = {name: last[name] for name in last if name.startswith(("val/", "cost/", "test/"))}
    losses = [float(row["train/loss/total"]) for row in rows if row.get("train/loss/total")]
    metrics |= generated_metrics(model, **generation)
    shutil.rmtree(folder / "model", ignore_errors=True)  # the checkpoint has what was trained
    return {"metrics": metrics, "losses": losses}


def train_policy(
    folder: Path, configs: list[dict[str, Any]], args: list[str], command: str = "fit"
) -> Log:
    """Train, put the policy into ``folder/model``, and read what was logged."""
    log = _command(command, folder, configs, args)
    main(["export", str(folder / "policy.ckpt"), str(folder / "model")])
    return log


def make_start(
    folder: Path, policy: dict[str, Any], configs: list[dict[str, Any]], args: list[str]
) -> dict[str, Any]:
    """Put what cells start from into ``folder/model``: a model as it is, or after SFT.

    Args:
        folder: Where its files go.
        policy: Where the model is, as a policy's options.
        configs: Configurations of the SFT, stacked; none takes the model as it is.
        args: Words of its command line.

    Returns:
        ``metrics``, the last ones of the SFT.
    """
    config, place = PolicyConfig(**policy), folder / ("published" if configs else "model")
    build_policy(config).save_pretrained(place)
    policy_tokenizer(config).save_pretrained(place)
    metrics = {}
    if configs:
        log = train_policy(folder, configs, [*args, f"--model.policy.path={place}"], "sft fit")
        metrics = {name: float(value) for row in log for name, value in row.items() if value}
        shutil.rmtree(place)
        (folder / "policy.ckpt").unlink()
    return {"metrics": metrics}


def _command(name: str, folder: Path, configs: list[dict[str, Any]], args: list[str]) -> Log:
    """Run a subcommand and read what it logged."""
    files = [folder / f"{number}.yaml" for number in range(len(configs))]
    for file, config in zip(files, configs, strict=True):
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    places = {
        "default_root_dir": folder,
        "logger.init_args.save_dir": folder,
        "logger.init_args.version": name,
        "callbacks.init_args.dirpath": folder,  # of the last one, the checkpoint
    }
    options = [f"--trainer.{option}={value}" for option, value in places.items()]
    main([*name.split(), *(f"--config={file}" for file in files), *args, *options])
    with (folder / "logs" / name / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
