"""Strategies that Lightning keeps for GPUs, on CPU processes."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel


class FSDPOnCPU(FSDPStrategy):
    """FSDP1 whose wrapper is told of the CPU; Lightning names devices by their index."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model,
            sharding_strategy=self.sharding_strategy,
            device_id=self.root_device,
            **self.kwargs,
        )


class ZeroOnCPU(DeepSpeedStrategy):
    """ZeRO without Lightning's check of the device."""

    def setup_environment(self):
        # Where there is a compiler, it would be built, and hang. (The attribute is torch itself.)
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self):
        return torch.device("cpu", 0)


@contextmanager
def gathered(strategy):
    """Have all parameters whole meanwhile."""
    if isinstance(strategy, FSDPStrategy):
        with FullyShardedDataParallel.summon_full_params(strategy.model, writeback=False):
            yield
    elif isinstance(strategy, DeepSpeedStrategy):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(strategy.lightning_module.parameters())):
            yield
    else:
        yield
