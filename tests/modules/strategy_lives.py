"""The commands under each strategy, one after the other: fit, resume, validate, predict.

``python -m modules.strategy_lives MODEL_FOLDER SOURCE FOLDER NAMES...`` runs them on two processes.
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
if importlib.util.find_spec("deepspeed") is None:
    STRATEGIES = {name: words for name, words in STRATEGIES.items() if "deepspeed" not in name}
TRAINING_ALONE = ("deepspeed_stage_3",)  # which is refused otherwise
BATCH = 4


def command(subcommand, model_folder, source, folder, *words, devices=1):
    """Type a command with what all have in common; its checkpoints and logs go into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    saver = {"dirpath": str(folder), "filename": "{step}", "save_top_k": -1}
    saver["every_n_train_steps"] = 1
    trainer = {
        "accelerator": "cpu",
        "devices": devices,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": str(folder),
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder)}},
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": saver}],
    }
    model = {
        "policy": {"path": model_folder},
        "anchor": {"max_new_tokens": 4, "top_k": 1},
        "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
    }
    tensor_parallel = any("tensor_parallel" in word for word in words)
    size = BATCH if tensor_parallel else BATCH // devices
    data = {"source": source, "max_length": 48, "batch_size": size}
    # One for each rank, as the other may read while this one writes.
    config = folder / f"{subcommand}-{os.environ.get('LOCAL_RANK', 0)}.yaml"
    if subcommand == "fit":
        trainer |= {"max_steps": 4, "gradient_clip_val": 0.5}
    config.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    main([subcommand, f"--config={config}", *words])


def live(name, model_folder, source, root, devices):
    """All commands under a strategy."""
    strategy = STRATEGIES[name] if devices > 1 else []

    def run(subcommand, folder, *words):
        words = [*strategy, *words]
        command(subcommand, model_folder, source, root / name / folder, *words, devices=devices)

    run("fit", "fit")
    run("fit", "resumed", f"--ckpt_path={root / name / 'fit' / 'step=2.ckpt'}")
    if name in TRAINING_ALONE and devices > 1:
        return
    last = f"--ckpt_path={root / name / 'fit' / 'step=4.ckpt'}"
    if name == "tensor_parallel" and devices > 1:  # folders know no layout
        run("fit", "crossed", f"--ckpt_path={root / 'fsdp2' / 'fit' / 'step=2.ckpt'}")
    run("validate", "validate", last)
    run("predict", "predict", last, "--data.predict_split=validation")


if __name__ == "__main__":
    model_folder, source, root, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for name in names:
        live(name, model_folder, source, Path(root), devices=2)
    torch.distributed.barrier()
