"""A step of KTO on single responses; ``python -m modules.single_response_run MODEL SOURCE RESULT``.

Before the first step the reference point is 0 on any number of processes.
"""

from __future__ import annotations

import sys

import torch

from lit_tidpo.losses.kto_loss import KTOLoss

from .runs import Recorder, make_data, make_module, quiet_trainer


def run(model_folder: str, source: str, devices: int) -> Recorder:
    """Train for a step on all twelve rows, whatever the number of processes."""
    recorder = Recorder()
    module = make_module(model_folder, losses={"kto": KTOLoss(desirable_weight=2.0)})
    data = make_data(source, model_folder, batch_size=12 // devices)
    parallel = {"strategy": "ddp", "devices": 2} if devices == 2 else {}
    quiet_trainer(max_steps=1, callbacks=[recorder], limit_val_batches=0, **parallel).fit(
        module, data
    )
    return recorder


if __name__ == "__main__":
    found = run(*sys.argv[1:3], devices=2)
    rank = torch.distributed.get_rank()
    torch.save((found.parameters[-1], found.metrics[-1]), f"{sys.argv[3]}.{rank}")
