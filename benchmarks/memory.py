"""Estimates of memory beside what processes take: ``python -m benchmarks.memory``.

Each run is a process of its own, whose peak of resident memory is measured from after a run of a
very small model, which brings the libraries' own, to the end of two steps. The results go to
``benchmarks/results/memory.json`` and, as a table, to standard output.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.worker import peak_memory
from lit_tidpo.devices.placement import default_device
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.memory.estimate import Estimator, libraries_on
from lit_tidpo.memory.rows import PairLengths, pairs_batch
from lit_tidpo.memory.step import DrySteps
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.generation import AnchorOptions

RESULTS = Path("benchmarks/results/memory.json")
PAIRS = [PairLengths(200, 220, 180), PairLengths(120, 260, 200)]
FEW = [PairLengths(4, 4, 4)]
_PLAIN: dict[str, Any] = {"losses": {"preference": DPOLoss()}}
_ANCHORS = {"anchor": AnchorOptions(max_new_tokens=16, reuse_steps=2)}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "plain DPO": ({}, _PLAIN, "32-true"),
    "plain DPO, LoRA": ({"lora": LoraOptions()}, _PLAIN, "32-true"),
    "plain DPO, bf16 weights": ({"dtype": "bfloat16"}, _PLAIN, "32-true"),
    "plain DPO, checkpointing": ({"activation_checkpointing": True}, _PLAIN, "32-true"),
    "plain DPO, padded": ({}, {**_PLAIN, "layout": "padded"}, "32-true"),
    "TI-DPO, anchors kept for 2 steps": ({}, _ANCHORS, "32-true"),
}
"""Options of the policy and of the module, and the precision, by name."""

_SIZES = {"small": (64, 32, 64, 1), "real": (8000, 320, 864, 5)}
"""Vocabulary, width, inner width and layers of two models, the latter of 11 million weights."""


def save_model(folder: str, size: str) -> str:
    """Write a random model; gives its folder."""
    vocabulary, width, inner, layers = _SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(f"{folder}/{size}")
    return f"{folder}/{size}"


def module(folder: str, name: str) -> PreferenceModule:
    """The module of a run."""
    policy, options, _ = RUNS[name]
    return PreferenceModule(PolicyConfig(folder, init="random", **policy), **options)


def train(folder: str, name: str, pairs: list[PairLengths]) -> None:
    """Two steps."""
    trained = module(folder, name)
    loader: Any = DataLoader([pairs_batch(pairs)] * 2, batch_size=None)  # type: ignore[arg-type]
    loader.lookahead = trained.anchor.reuse_steps
    trainer = lightning.Trainer(
        max_steps=2,
        precision=RUNS[name][2],  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(trained, loader)


def compare(folder: str, name: str, found: Any) -> None:
    """Put what two steps take beside what was there before, and the estimate."""
    torch.set_num_threads(1)
    train(save_model(folder, "small"), name, FEW)
    real, before = save_model(folder, "real"), peak_memory()
    train(real, name, PAIRS)
    measured = peak_memory() - before
    device = default_device()
    steps = DrySteps(module(real, name), RUNS[name][2], 1, device)
    estimate = Estimator(steps, libraries=libraries_on(device)).total(PAIRS)
    found.put({"run": name, "estimate": estimate, "measured": measured})


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    estimate, measured = row["estimate"], row["measured"]
    name, ratio = row["run"], estimate / measured
    return f"| {name} | {estimate / 1e9:.3f} | {measured / 1e9:.3f} | {ratio:.2f} |"


def table(rows: list[dict[str, Any]]) -> str:
    """The table, as ``docs/costs.md`` has it."""
    head = "| run | estimate, GB | measured, GB | ratio |\n| --- | --- | --- | --- |\n"
    return head + "".join(f"{line(row)}\n" for row in rows)


def main() -> None:
    """Measure all runs, or those named, and write what was found of all."""
    # Children that are forked have the libraries already.
    context: Any = multiprocessing.get_context("fork")
    known = {row["run"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in sys.argv[1:] or RUNS:
        found = context.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            child = context.Process(target=compare, args=(folder, name, found))
            child.start()
            child.join()
        if child.exitcode:
            raise SystemExit(f"{name}: status {child.exitcode}")
        known[name] = found.get()
        print(line(known[name]), flush=True)
        rows = [known[each] for each in RUNS if each in known]
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
