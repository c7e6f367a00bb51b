"""Train with TRL's DPOTrainer, as its users do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.contestants import Contestant
from benchmarks.workloads import Workload


class _Ticks(TrainerCallback):
    def __init__(self, tick: Callable[[Any], None]) -> None:
        self.tick = tick
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.tick(None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(
    folder: Path,
    load: Workload,
    contestant: Contestant,
    steps: int,
    tick: Callable[[Any], None],
    log: bool = False,
) -> list[float]:
    """Train for some steps.

    Args:
        folder: Model, tokenizer and rows.
        load: What they are.
        contestant: How to train.
        steps: Number of optimizer steps.
        tick: Called with None after each step.
        log: Whether to log the loss of each step, which costs time.

    Returns:
        The logged losses, or else their mean alone.
    """
    ticks = _Ticks(tick)
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=load.pairs,
        max_steps=steps,
        max_length=None,
        learning_rate=load.rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=load.precision == "bf16",
        train_sampling_strategy="sequential",
        logging_steps=1 if log else 10_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": "float32"},
        **contestant.options,
    )
    trainer = DPOTrainer(
        model=str(folder),
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(folder / "train.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[ticks],
    )
    trained = trainer.train()
    return ticks.losses or [trained.training_loss]
