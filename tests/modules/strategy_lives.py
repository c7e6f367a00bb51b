"""The commands under each strategy, one after the other: fit, resume, validate, predict.

``python -m modules.strategy_lives DEVICES MODEL_FOLDER SOURCE FOLDER NAMES...`` runs them on as
many processes; on one process, it goes on from the folders of those names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
import yaml

from lit_tidpo.cli import main

CONFIGS = Path(__file__).parents[2] / "configs" / "strategies"


def on_cpu(name, **options):
    """The words for a strategy that Lightning keeps for GPUs."""
    strategy = {"class_path": f"modules.cpu_strategies.{name}", "init_args": options}
    return f"--trainer.strategy={json.dumps(strategy)}"


STRATEGIES = {
    "deepspeed_stage_2": [on_cpu("ZeroOnCPU", stage=2)],
    "deepspeed_stage_3": [on_cpu("ZeroOnCPU", stage=3)],
    "ddp": [f"--config={CONFIGS / 'ddp.yaml'}"],
    "fsdp2": [f"--config={CONFIGS / 'fsdp2.yaml'}"],
    "tensor_parallel": [f"--config={CONFIGS / 'tensor_parallel.yaml'}"],
    "fsdp": [on_cpu("FSDPOnCPU", state_dict_type="sharded")],
}
# On four processes: two groups with rows of their own, in windows of two batches.
MESH = {
    "fsdp2_tensor_parallel": [
        f"--config={CONFIGS / 'fsdp2_tensor_parallel.yaml'}",
        "--trainer.accumulate_grad_batches=2",
        "--data.batch_size=1",
    ]
}
if importlib.util.find_spec("deepspeed") is None:
    STRATEGIES = {name: words for name, words in STRATEGIES.items() if "deepspeed" not in name}
TRAINING_ALONE = ("deepspeed_stage_3",)  # which is refused otherwise
BATCH = 4
TRAINING = {"max_steps": 4, "gradient_clip_val": 0.5}


def configuration(model_folder, source, size, **trainer):
    """What all runs have in common, with so many rows in the batch of a process."""
    quiet = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    model = {
        "policy": {"path": model_folder},
        "anchor": {"max_new_tokens": 4, "top_k": 1},
        "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
    }
    data = {"source": source, "max_length": 48, "batch_size": size}
    return {"trainer": {**quiet, **trainer}, "model": model, "data": data}


def command(subcommand, model_folder, source, folder, *words, devices=1):
    """Type a command with what all have in common; its checkpoints and logs go into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    saver = {"dirpath": str(folder), "filename": "{step}", "save_top_k": -1}
    saver["every_n_train_steps"] = 1
    trainer = {
        "devices": devices,
        "default_root_dir": str(folder),
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder)}},
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": saver}],
    }
    if subcommand == "fit":
        trainer |= TRAINING
    share_rows = any(word.endswith("/tensor_parallel.yaml") for word in words)
    size = BATCH if share_rows else BATCH // devices
    # One for each rank, as the other may read while this one writes.
    config = folder / f"{subcommand}-{os.environ.get('LOCAL_RANK', 0)}.yaml"
    config.write_text(yaml.safe_dump(configuration(model_folder, source, size, **trainer)))
    main([subcommand, f"--config={config}", *words])


def live(name, model_folder, source, root, devices):
    """All commands under a strategy."""
    strategy = {**STRATEGIES, **MESH}[name] if devices > 1 else []

    def run(subcommand, folder, *words):
        words = [*strategy, *words]
        command(subcommand, model_folder, source, root / name / folder, *words, devices=devices)

    run("fit", "fit")
    run("fit", "resumed", f"--ckpt_path={root / name / 'fit' / 'step=2.ckpt'}")
    if name in TRAINING_ALONE and devices > 1:
        return
    last = f"--ckpt_path={root / name / 'fit' / 'step=4.ckpt'}"
    if "tensor_parallel" in name and devices > 1:  # folders know no layout
        run("fit", "crossed", f"--ckpt_path={root / 'fsdp2' / 'fit' / 'step=2.ckpt'}")
    run("validate", "validate", last)
    run("predict", "predict", last, "--data.predict_split=validation")


def go_on(name, model_folder, source, root):
    """Let one process go on from the folder of a strategy."""
    words = [*STRATEGIES["fsdp2"], f"--ckpt_path={root / name / 'fit' / 'step=2.ckpt'}"]
    command("fit", model_folder, source, root / name / "alone", *words)


if __name__ == "__main__":
    devices, model_folder, source, root, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for name in names:
        if devices == "1":
            go_on(name, model_folder, source, Path(root))
        else:
            live(name, model_folder, source, Path(root), int(devices))
    torch.distributed.barrier()
