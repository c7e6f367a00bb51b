"""Policies after some preference training, one for each seed, trained at first use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lit_tidpo.cli import main

CONFIG = Path(__file__).parent / "plain_dpo.yaml"


def trained_policy(folder: Path, seed: int, steps: int) -> Path:
    """Train the shipped policy by plain DPO, with the learning rate of the quick start.

    Plain DPO, so that no estimator is measured on a policy that it has itself trained.

    Args:
        folder: Where trained policies are kept.
        seed: Seed of the data order.
        steps: Optimizer steps of 16 pairs of the training modules.

    Returns:
        A folder that transformers loads; one that is already there is not trained again.
    """
    target = folder / f"policy-{steps}-steps-seed-{seed}"
    if target.exists():
        return target
    run, exported = folder / f"{target.name}.run", folder / f"{target.name}.part"
    for left_over in (run, exported):
        shutil.rmtree(left_over, ignore_errors=True)
    main(_fit_arguments(run, seed, steps))
    main(["export", str(run / "kept" / "policy.ckpt"), str(exported)])
    exported.rename(target)  # an interrupted export is never taken for a whole one
    shutil.rmtree(run)
    return target


def _fit_arguments(run: Path, seed: int, steps: int) -> list[str]:
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": str(run / "kept"),
            "filename": "policy",
            "every_n_train_steps": steps,
        },
    }
    settings = {
        "seed_everything": seed,
        "model.seed": seed,
        "data.seed": seed,
        "trainer.max_steps": steps,
        "trainer.default_root_dir": run,
        "trainer.callbacks": json.dumps([checkpoint]),
    }
    return ["fit", "--config", str(CONFIG), *(f"--{name}={v}" for name, v in settings.items())]
