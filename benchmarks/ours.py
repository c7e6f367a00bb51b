"""Train with lit_tidpo, as its users do: a PreferenceModule under a Lightning Trainer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import SequentialSampler

from benchmarks.contestants import Contestant
from benchmarks.workloads import Workload
from lit_tidpo import PreferenceDataModule, PreferenceModule
from lit_tidpo.data.loaders import ResumableLoader
from lit_tidpo.models import varlen
from lit_tidpo.models.policy import PolicyConfig


class _Ticks(lightning.Callback):
    def __init__(self, tick: Callable[[float], None]) -> None:
        self.tick = tick

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.tick(outputs["loss"])


def train(
    folder: Path, load: Workload, contestant: Contestant, steps: int, tick: Callable[[Any], None]
) -> None:
    """Train for some steps.

    Args:
        folder: Model, tokenizer and rows.
        load: What they are.
        contestant: How to train.
        steps: Number of optimizer steps.
        tick: Called with the loss after each step.
    """
    lightning.seed_everything(0, verbose=False)
    module = PreferenceModule(
        PolicyConfig(
            str(folder),
            dtype="float32",
            compile_layers=contestant.compiled,
            liger=contestant.liger,
        ),
        optimizer=functools.partial(torch.optim.AdamW, lr=load.rate, weight_decay=0.0, fused=True),
        **contestant.options,
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        precision="bf16-mixed" if load.precision == "bf16" else "32-true",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        devices=contestant.devices,
        callbacks=[_Ticks(tick)],
    )
    # With more devices the data module gives each process its share.
    several = contestant.devices > 1
    rows = _data(folder, load) if several else sequential_loader(folder, load, module)
    with without_kernel() if contestant.laid_out else contextlib.nullcontext():
        trainer.fit(module, rows)


@contextlib.contextmanager
def without_kernel() -> Iterator[None]:
    """Lay packed rows out for attention, as on a machine without a kernel for them."""
    serves = varlen.serves
    varlen.serves = lambda *_: False
    try:
        yield
    finally:
        varlen.serves = serves


def _data(folder: Path, load: Workload) -> PreferenceDataModule:
    return PreferenceDataModule(
        str(folder), str(folder), batch_size=load.pairs, max_length=4 * load.longest
    )


def sequential_loader(folder: Path, load: Workload, module: PreferenceModule) -> ResumableLoader:
    """The rows in the order of their file, as the other side gets them."""
    data = _data(folder, load)
    data.setup("fit")
    given = data.train_dataloader()
    loader = ResumableLoader(
        given.dataset,
        batch_size=load.pairs,
        sampler=SequentialSampler(given.dataset),
        collate_fn=given.collate_fn,
    )
    loader.lookahead = module.anchor.reuse_steps
    return loader
