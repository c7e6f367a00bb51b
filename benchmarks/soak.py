"""What a long run notes of itself; see :mod:`benchmarks.faults`."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Watch(Callback):
    """Writes resident memory and open handles into ``soak.jsonl``.

    Args:
        every: Optimizer steps between two notes.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a note."""
        if trainer.global_step % self.every:
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        note = {
            "step": trainer.global_step,
            "bytes": pages * os.sysconf("SC_PAGESIZE"),
            "handles": len(os.listdir("/proc/self/fd")),
        }
        with Path("soak.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
