"""One cell of the grid: train and test by the command line, then generate."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evidence.data import rows_of
from lit_tidpo.assets.build.arithmetic import is_right
from lit_tidpo.cli import main
from lit_tidpo.locations import locate
from lit_tidpo.metrics.diversity import DistinctNGrams, SelfBLEU, TokenEntropy

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
    return {"metrics": metrics | generated_metrics(model, **generation), "losses": losses}


def train_policy(folder: Path, configs: list[dict[str, Any]], args: list[str]) -> Log:
    """Train, put the policy into ``folder/model``, and read what was logged."""
    log = _command("fit", folder, configs, args)
    main(["export", str(folder / "policy.ckpt"), str(folder / "model")])
    return log


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
    main([name, *(f"--config={file}" for file in files), *args, *options])
    with (folder / "logs" / name / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def generated_metrics(
    model: str,
    data: str,
    seed: int,
    sampled_prompts: int,
    samples: int,
    tokens: int,
    answers: bool = False,
) -> dict[str, float]:
    """Measure what a policy writes for held-out prompts.

    Args:
        model: Folder of a model with its tokenizer.
        data: Source of the pairs.
        seed: Of the samples, at temperature 1.
        sampled_prompts: Prompts of the test split that are sampled for.
        samples: Of each of them.
        tokens: Of a response at most.
        answers: Whether a greedy response to every held-out prompt is checked, too.

    Returns:
        ``val/answers/right`` and ``test/answers/right``, the share whose last number is the sum;
        ``diversity/*``, the paper's measures (Table B9).
    """
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()

    def responses(prompts: list[str], **options: Any) -> Tensor:
        encoded = tokenizer(prompts, return_tensors="pt", padding=True).to(device)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        generated: Tensor = policy.generate(**inputs, max_new_tokens=tokens, **options)
        return generated[:, inputs["input_ids"].shape[1] :].cpu()

    metrics = {}
    for stage, split in {"val": "validation", "test": "test"}.items() if answers else ():
        prompts = [row["prompt"] for row in rows_of(data, split)]
        greedy = responses(prompts, do_sample=False)
        texts = tokenizer.batch_decode(greedy, skip_special_tokens=True)
        metrics[f"{stage}/answers/right"] = sum(map(is_right, prompts, texts)) / len(prompts)
    distinct = dict.fromkeys(row["prompt"] for row in reversed(rows_of(data, "test")))
    few = list(reversed(distinct))[:sampled_prompts]
    torch.manual_seed(seed)
    sampled = responses(few, do_sample=True, num_return_sequences=samples, top_k=0)
    mask = (sampled == tokenizer.eos_token_id).cumsum(-1) == 0
    measures = {
        "self_bleu": SelfBLEU(),
        "distinct_2": DistinctNGrams(2),
        "distinct_4": DistinctNGrams(4),
        "entropy": TokenEntropy(),
    }
    for name, metric in measures.items():
        metric.update(sampled, mask, torch.arange(len(few)).repeat_interleave(samples))
        metrics[f"diversity/{name}"] = float(metric.compute())
    return metrics
