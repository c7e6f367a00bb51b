"""Runs that must give the same on one process and on two; started as a command under DDP.

``python -m modules.ddp_runs MODEL_FOLDER SOURCE RESULTS`` runs all on two processes.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.sparse_po_loss import SparsePOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.sampling.kept_samples import KeptSamples

from .cpu_strategies import FSDPOnCPU, ZeroOnCPU, gathered
from .runs import (
    NO_TRIPLET,
    SGD,
    Recorder,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
    whole,
)

GLOBAL_BATCH = 4
STEPS = 4


class SpoiledDPO(DPOLoss):
    """DPO that is NaN in one call of one process."""

    def __init__(self, rank, call):
        super().__init__()
        self.rank = rank
        self.call = call
        self.calls = 0

    def loss(self, context):
        self.calls += 1
        here = int(os.environ.get("LOCAL_RANK", "0")) == self.rank
        factor = torch.nan if here and self.calls == self.call else 1.0
        return super().loss(context) * factor


def preference(model_folder, devices, **options):
    return make_module(model_folder, **{**NO_TRIPLET, **options})


def reference_folder(model_folder, devices, name):
    return f"{model_folder}-reference-{devices}-{name}"


def cached(model_folder, devices, name, **options):
    losses = {"preference": WeightedDPOLoss(alpha=0)}
    folder = reference_folder(model_folder, devices, name)
    return make_module(model_folder, losses=losses, reference_cache=folder, **options)


class Forgetful(KeptSamples):
    """Anchors that one process loses before the second step of the first window."""

    def __init__(self, options, rank):
        super().__init__(Generation(options), options.reuse_steps)
        self.rank = rank

    def lookup(self, batch, count, step):
        if step == 1 and int(os.environ.get("LOCAL_RANK", "0")) == self.rank:
            self.rank = None
            return None
        return super().lookup(batch, count, step)


def anchored(model_folder, devices, **options):
    """The likeliest tokens do not depend on the process that samples them."""
    anchor = AnchorOptions(max_new_tokens=4, top_k=1, reuse_steps=2)
    module = make_module(model_folder, anchor=anchor, **options)
    module.kept_samples = Forgetful(anchor, rank=devices - 1)
    return module


def spoiled(model_folder, devices):
    losses = {"preference": SpoiledDPO(rank=devices - 1, call=2)}
    return make_module(model_folder, losses=losses, non_finite="skip")


def learned(model_folder, devices):
    """Masks over hidden states, which start alike on all ranks."""
    return make_module(model_folder, losses={"masks": SparsePOLoss()})


def sft(model_folder, devices):
    return SFTModule(PolicyConfig(path=model_folder), optimizer=SGD)


# The engine carries half a window into the next epoch. Two of the four steps are clipped, so that
# gradients of another size would show.
ZERO_WINDOWS = (
    preference,
    {},
    {"max_rows": 8},
    {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
)

# What makes the module, its options, those of the data and of the Trainer.
RUNS = {
    "plain": (preference, {}, {}, {}),
    "clipped": (preference, {}, {}, {"gradient_clip_val": 0.05}),
    "odd": (preference, {}, {"max_rows": 11}, {}),
    "accumulated": (preference, {}, {"max_rows": 11}, {"accumulate_grad_batches": 2}),
    "accumulated, clipped": (
        preference,
        {},
        {"max_rows": 11},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "checkpointing": (preference, {"policy": {"activation_checkpointing": True}}, {}, {}),
    "precomputed": (preference, {"importance_every": 0}, {"max_rows": 11}, {}),
    "cached": (cached, {"name": "ddp"}, {"max_rows": 11}, {}),
    "adapters": (preference, {"policy": {"lora": LoraOptions(r=2, alpha=2)}}, {}, {}),
    "anchors": (anchored, {}, {"lookahead": 2}, {}),
    "sharded, anchors": (anchored, {}, {"lookahead": 2}, {}),
    "sharded, anchors, adapters": (
        anchored,
        {"policy": {"lora": LoraOptions(r=2, alpha=2)}},
        {"lookahead": 2},
        {},
    ),
    "mixed": (preference, {}, {"max_rows": 11}, {"precision": "bf16-mixed"}),
    "mixed, anchors": (anchored, {}, {"lookahead": 2}, {"precision": "bf16-mixed"}),
    "rounded": (
        preference,
        {"policy": {"dtype": "bfloat16", "stochastic_rounding": True}},
        {"max_rows": 11},
        {},
    ),
    "learned": (learned, {}, {"max_rows": 11}, {}),
    "spoiled": (spoiled, {}, {}, {"limit_val_batches": 0}),
    "sft": (sft, {}, {"max_rows": 11}, {"accumulate_grad_batches": 2}),
    "sharded, adapters": (preference, {"policy": {"lora": LoraOptions(r=2, alpha=2)}}, {}, {}),
    "sharded, cached": (cached, {"name": "fsdp"}, {"max_rows": 11}, {}),
    "sharded, cached, adapters": (
        cached,
        {"name": "lora", "policy": {"lora": LoraOptions(r=2, alpha=2)}},
        {},
        {},
    ),
    "sharded, packed": (preference, {"layout": "packed"}, {"max_rows": 11}, {}),
    "sharded": (preference, {}, {"max_rows": 11}, {}),
    "sharded, checkpointing": (
        preference,
        {"policy": {"activation_checkpointing": True}},
        {},
        {},
    ),
    "sharded, accumulated, clipped": (
        preference,
        {},
        {"max_rows": 11},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "sharded, mixed": (preference, {}, {"max_rows": 11}, {"precision": "bf16-mixed"}),
    "sharded, mixed, anchors": (anchored, {}, {"lookahead": 2}, {"precision": "bf16-mixed"}),
    "sharded, bfloat16": (preference, {"policy": {"dtype": "bfloat16"}}, {"max_rows": 11}, {}),
    "split": (preference, {}, {"max_rows": 11}, {}),
    "split, accumulated, clipped": (
        preference,
        {},
        {"max_rows": 11},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "split, learned": (learned, {}, {"max_rows": 11}, {}),
    "split, mixed": (preference, {}, {"max_rows": 11}, {"precision": "bf16-mixed"}),
    "split, bfloat16": (preference, {"policy": {"dtype": "bfloat16"}}, {"max_rows": 11}, {}),
    "split, checkpointing": (preference, {"policy": {"activation_checkpointing": True}}, {}, {}),
    "split, precomputed": (preference, {"importance_every": 0}, {"max_rows": 11}, {}),
    "split, cached": (cached, {"name": "split"}, {"max_rows": 11}, {}),
    "split, anchors": (anchored, {}, {"lookahead": 2}, {}),
    "wrapped": (preference, {}, {"max_rows": 11}, {}),
    "wrapped, clipped": (preference, {}, {}, {"gradient_clip_val": 0.05}),
    "wrapped, accumulated, clipped": (
        preference,
        {"importance": UniformImportance()},
        {"max_rows": 11},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "wrapped, checkpointing": (
        preference,
        {"policy": {"activation_checkpointing": True}},
        {},
        {},
    ),
    "wrapped, anchors": (anchored, {}, {"lookahead": 2}, {}),
    "wrapped, adapters": (preference, {"policy": {"lora": LoraOptions(r=2, alpha=2)}}, {}, {}),
    "wrapped, cached": (cached, {"name": "wrapped"}, {"max_rows": 11}, {}),
    "zero1, accumulated, clipped": ZERO_WINDOWS,
    **{
        f"zero{stage}{more}": run
        for stage in (2, 3)
        for more, run in {
            "": (preference, {}, {"max_rows": 11}, {}),
            ", accumulated, clipped": ZERO_WINDOWS,
            ", anchors": (anchored, {}, {"lookahead": 2}, {}),
            ", adapters": (preference, {"policy": {"lora": LoraOptions(r=2, alpha=2)}}, {}, {}),
        }.items()
    },
    "zero3, cached": (cached, {"name": "zero3"}, {"max_rows": 11}, {}),
}


NOT_DDP = ("sharded", "split", "wrapped", "zero")


class Watcher(Callback):
    """Keeps the starting parameters, and tells which parameters DDP synchronises."""

    def on_train_start(self, trainer, module):
        with gathered(trainer.strategy):
            self.start = parameters(module)
        wrapped = trainer.strategy.model
        self.synchronised = sorted(name for name, _ in wrapped.named_parameters())
        inside = {id(parameter) for parameter in wrapped.parameters()}
        models = getattr(module, "_models", None)
        others = [] if models is None else models.own[1:]
        frozen = [parameter for model in others for parameter in model.parameters()]
        self.reference_inside = any(id(parameter) in inside for parameter in frozen)
        self.frozen = frozen
        self.frozen_before = whole(frozen)


def strategy_of(name, devices):
    if devices == 1:
        return "auto"
    first = name.partition(",")[0]
    if first == "sharded":  # FSDP2
        return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)
    if first == "split":  # tensor parallelism
        return ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=devices)
    if first == "wrapped":  # FSDP1
        return FSDPOnCPU()
    if first.startswith("zero"):  # DeepSpeed
        return ZeroOnCPU(stage=int(first[-1]))
    return "ddp"


def shares_of(name, devices):
    """Number of processes that have rows of their own."""
    return 1 if name.startswith("split") else devices


def run(name, model_folder, source, devices):
    """Train and validate; give what came of it on this process."""
    make, options, data, trainer_options = RUNS[name]
    module = make(model_folder, devices, **options)
    recorder, watcher = Recorder(), Watcher()
    trainer = quiet_trainer(
        devices=devices,
        strategy=strategy_of(name, devices),
        max_steps=STEPS,
        callbacks=[recorder, watcher],
        **{"limit_val_batches": 1.0, **trainer_options},
    )
    batch_size = GLOBAL_BATCH // shares_of(name, devices)
    trainer.fit(module, make_data(source, model_folder, batch_size=batch_size, **data))
    logged = trainer.callback_metrics.items()
    with gathered(trainer.strategy):
        end = parameters(module)
    return {
        "parameters": end,
        "moved": max(float((end[key] - watcher.start[key]).abs().max()) for key in end),
        "train": recorder.metrics,
        "rows": recorder.rows,
        "val": {key: float(value) for key, value in logged if key.startswith("val/")},
        "synchronised": watcher.synchronised,
        "reference_inside": watcher.reference_inside,
        "reference_moved": any(
            not torch.equal(now, before)
            for now, before in zip(whole(watcher.frozen), watcher.frozen_before, strict=True)
        ),
        "split": [n for n, p in module.named_parameters() if isinstance(p, DTensor)],
        "skipped": getattr(module, "skipped_steps", 0),
    }


def main(model_folder, source, results):
    torch.set_num_threads(1)
    without = importlib.util.find_spec("deepspeed") is None
    names = [name for name in RUNS if not (without and name.startswith("zero"))]
    found = {name: run(name, model_folder, source, devices=2) for name in names}
    torch.distributed.barrier()
    torch.save(found, f"{results}.{os.environ['LOCAL_RANK']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
