"""The configuration of each method as a short life: fit, resume, validate, predict.

``python -m modules.method_lives MODEL_FOLDER OTHER_FOLDER SOURCE RESULTS [NAMES...]`` runs all, or
those named, on two processes, one after the other. All ran so once; the test repeats the KINDS.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins

from .runs import Recorder, make_data, parameters, quiet_trainer

METHODS = sorted((Path(__file__).parents[2] / "configs" / "methods").glob("*.yaml"))
KINDS = [
    *("aot", "bco", "beta_dpo", "conf_po", "dpo", "kto", "odpo", "orpo", "plackett_luce", "sepo"),
    *("sft", "sparse_po", "tbpo_q", "tgdpo", "tis_dpo", "tpo", "triplet", "weighted_dpo"),
]
"""One of each kind of loss, for the test; the others differ from one of these by a formula."""
GLOBAL_BATCH = 4
# The optimizers of the methods move parameters by 1e-6: no difference would show.
STEEP = [
    "--model.optimizer=SGD",
    "--model.optimizer.lr=0.05",
    "--model.warmup_steps=0",
    "--model.anchor.max_new_tokens=4",
    "--model.anchor.top_k=1",  # the likeliest tokens, whatever the process draws
]
# The triplet alone has no gradient where the policy is its own reference.
FURTHER = {"sepo": "models.oracle.path", "tgdpo": "models.guide.path", "triplet": "reference"}


@functools.cache
def _parser() -> PluginArgumentParser:
    parser = PluginArgumentParser()
    parser.add_lightning_class_args(PreferenceModule, "model")
    parser.add_argument("--config", action="config")
    return parser


@functools.cache
def _settings(config: Path, model_folder: str, other_folder: str) -> Any:
    words = [f"--config={config}", f"--model.policy.path={model_folder}", *STEEP]
    if config.stem in FURTHER:
        words.append(f"--model.{FURTHER[config.stem]}={other_folder}")
    load_named_plugins(words)
    return _parser().parse_args(words)


@functools.cache
def _data(source: str, model_folder: str, batch_size: int) -> PreferenceDataModule:
    """The data of all runs on as many processes: tokenised once, batched anew by each run."""
    return make_data(source, model_folder, batch_size=batch_size)


def module_of(config: Path, model_folder: str, other_folder: str) -> PreferenceModule:
    """The module of a method's configuration, with a tiny policy."""
    settings = _settings(config, model_folder, other_folder).clone()
    module: PreferenceModule = _parser().instantiate_classes(settings).model
    return module


def fit(config, folders, source, root, devices, ckpt_path=None):
    """Train to the third step; without a checkpoint to go on from, keep that of the second."""
    saver = ModelCheckpoint(root, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    recorder = Recorder()
    trainer = quiet_trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=3,
        gradient_clip_val=0.5,  # gradients of the losses differ by orders of magnitude
        callbacks=[recorder] if ckpt_path or devices == 1 else [recorder, saver],
        enable_checkpointing=devices > 1 and not ckpt_path,
    )
    seed_everything(0, verbose=False)
    module = module_of(config, *folders)
    data = _data(source, folders[0], GLOBAL_BATCH // devices)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module, data, recorder


def live(config, folders, source, root):
    """Three steps on two processes, the third once more, validation, prediction."""
    _, module, _, recorder = fit(config, folders, source, root, devices=2)
    trainer, resumed, data, _ = fit(
        config, folders, source, root, devices=2, ckpt_path=str(root / "step=2.ckpt")
    )
    trainer.limit_val_batches = 1.0
    (validated,) = trainer.validate(resumed, data, verbose=False)
    predicted = trainer.predict(resumed, data)
    return {
        "first": recorder.parameters[0],
        "fitted": parameters(module),
        "resumed": parameters(resumed),
        "logged": recorder.metrics,
        "validated": validated,
        "rows": [p.batch.index.tolist() for p in predicted],
        "weights": [p.values["weights"] for p in predicted],
    }


def main(model_folder, other_folder, source, results, *names):
    torch.set_num_threads(1)
    folders = (model_folder, other_folder)
    lives = {
        config.stem: live(config, folders, source, Path(f"{results}-{config.stem}"))
        for config in METHODS
        if not names or config.stem in names
    }
    torch.distributed.barrier()
    torch.save(lives, f"{results}.{os.environ['LOCAL_RANK']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
