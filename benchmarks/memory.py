"""Estimates of memory beside what processes take: ``python -m benchmarks.memory``.

Each run is a process of its own, whose peak of resident memory is measured from before its models
are made. A table goes to standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.worker import peak_memory
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.memory.estimate import Estimator
from lit_tidpo.memory.rows import PairLengths, pairs_batch
from lit_tidpo.memory.step import DrySteps
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule

PAIRS = [PairLengths(200, 220, 180), PairLengths(120, 260, 200)] * 2
_PLAIN: dict[str, Any] = {"losses": {"preference": DPOLoss()}}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "plain DPO": ({}, _PLAIN, "32-true"),
    "TI-DPO": ({}, {}, "32-true"),
    "TI-DPO, bf16-mixed": ({}, {}, "bf16-mixed"),
    "plain DPO, checkpointing": ({"activation_checkpointing": True}, _PLAIN, "32-true"),
    "plain DPO, LoRA": ({"lora": LoraOptions()}, _PLAIN, "32-true"),
    "plain DPO, bf16 weights": ({"dtype": "bfloat16"}, _PLAIN, "32-true"),
    "plain DPO, padded": ({}, {**_PLAIN, "layout": "padded"}, "32-true"),
    "plain DPO, logits in tiles": ({}, {**_PLAIN, "logits_at_once": 2**22}, "32-true"),
}
"""Options of the policy and of the module, and the precision, by name."""


def module(folder: str, name: str) -> PreferenceModule:
    """The module of a run; its model has 22 million parameters."""
    policy, options, _ = RUNS[name]
    return PreferenceModule(PolicyConfig(folder, init="random", **policy), **options)


def measure(folder: str, name: str) -> int:
    """Bytes that two steps take beside what was there before."""
    warm = torch.nn.Linear(64, 64)
    warm(torch.zeros(64, 64)).sum().backward()
    before = peak_memory()
    loader: Any = DataLoader([pairs_batch(PAIRS)] * 2, batch_size=None)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_steps=2,
        precision=RUNS[name][2],  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module(folder, name), loader)
    return peak_memory() - before


def estimate(folder: str, name: str) -> int:
    """Bytes by the estimate."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = DrySteps(module(folder, name), RUNS[name][2], 1, device)
    return Estimator(steps).total(PAIRS)


def main() -> None:
    """Print the table; of one run alone, with a folder and its name, the two numbers."""
    if len(sys.argv) > 1:
        what = {"measure": measure, "estimate": estimate}[sys.argv[1]]
        print(json.dumps(what(*sys.argv[2:])))
        return
    config = LlamaConfig(
        vocab_size=16000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    print("| run | estimate, GB | measured, GB | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        for name in RUNS:
            found, real = (
                int(
                    subprocess.run(
                        [sys.executable, "-m", "benchmarks.memory", what, folder, name],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout.splitlines()[-1]
                )
                for what in ("estimate", "measure")
            )
            print(
                f"| {name} | {found / 1e9:.3f} | {real / 1e9:.3f} | {found / real:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
