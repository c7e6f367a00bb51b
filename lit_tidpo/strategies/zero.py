"""``DeepSpeedStrategy``: ZeRO, whose stages share out optimizer state, gradients and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lit_tidpo.errors import InputError
from lit_tidpo.models.sharding import is_sharded
from lit_tidpo.models.zero_folder import zero_layout
from lit_tidpo.strategies.family import Run, StrategyFamily, check_unbuilt, unresumable
from lit_tidpo.strategies.whole_steps import UNSHARED, check_whole_steps


class Zero(StrategyFamily):
    """DeepSpeed's engine, which accumulates, clips and steps by itself."""

    strategies = (DeepSpeedStrategy,)
    accumulates = True
    folders = "deepspeed"

    @property
    def _stage(self) -> int:
        config: dict[str, Any] = self.strategy.config.get("zero_optimization") or {}
        return int(config.get("stage", 0))

    @property
    def in_step(self) -> bool:  # type: ignore[override]
        """Whether weights are shared out, too: stage 3."""
        return self._stage == 3

    @property
    def attributes_apart(self) -> bool:  # type: ignore[override]
        """Whether a graph serves one backward pass: gathered weights are let go of after it."""
        return self._stage == 3

    @property
    def unshared_prompts(self) -> str | None:  # type: ignore[override]
        """Why prompts are not shared, at stage 3."""
        return UNSHARED if self._stage == 3 else None

    def check(self, run: Run) -> None:
        """Refuse what the engine would make wrong; see :meth:`StrategyFamily.check`."""
        # For its own logs alone; Lightning would ask the training data, which validation has not.
        self.strategy.config.setdefault("train_micro_batch_size_per_gpu", 1)
        check_whole_steps(run, "deepspeed")
        if run.skips_steps:
            raise InputError(
                "model.non_finite=skip cannot reach the gradients that DeepSpeed keeps: set raise"
            )
        super().check(run)
        if self.in_step and (run.policy is None or not is_sharded(run.policy)):
            check_unbuilt(run, "deepspeed_stage_3")
        if self._stage == 3 and not run.fits:
            raise InputError(
                "DeepSpeed cannot load a checkpoint of stage 3 without training on: validate, test "
                "and predict in one process (--trainer.devices 1, without the strategy), which "
                "reads it"
            )
        if run.accumulates:
            rank_zero_warn(
                "DeepSpeed averages over the batches of an accumulated step: one with fewer rows "
                "(or tokens, in sft) counts as much as the others"
            )

    def check_resumed(self, checkpoint: Path, processes: int) -> None:
        """Refuse shares of other processes; see :meth:`StrategyFamily.check_resumed`."""
        super().check_resumed(checkpoint, processes)
        if not checkpoint.is_dir():
            raise unresumable(
                checkpoint,
                "is a file, and DeepSpeed goes on from folders that it wrote itself: take "
                "configs/strategies/ddp.yaml",
            )
        stage, shares = zero_layout(checkpoint)
        if shares != processes or (stage == 3) != (self._stage == 3):
            raise unresumable(
                checkpoint,
                f"holds the optimizer in {shares} shares, written at stage {stage}, and DeepSpeed "
                f"cannot give them to {processes} processes at stage {self._stage}: set "
                f"strategy=deepspeed_stage_{stage} and trainer.devices (times trainer.num_nodes) "
                f"to {shares}",
            )

    @contextmanager
    def building(self) -> Iterator[None]:
        """Build models whole: stage 3 would take a share of each weight before it is loaded."""
        from deepspeed.runtime.zero.partition_parameters import (
            restore_init_context,
            shutdown_init_context,
        )

        shutdown_init_context()
        try:
            yield
        finally:
            restore_init_context()

    def shard_frozen(self, model: nn.Module) -> nn.Module:
        """Share the weights out at stage 3; see :meth:`StrategyFamily.shard_frozen`."""
        if self._stage != 3:
            return model
        import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": self.strategy.config["zero_optimization"],
        }
        engine, *_ = deepspeed.initialize(
            model=model, config=config, model_parameters=[], dist_init_required=False
        )
        sharded: nn.Module = engine.module
        return sharded

    def inner_optimizer(self, optimizer: Any) -> Optimizer:
        """The one that the engine's shares out; see :meth:`StrategyFamily.inner_optimizer`."""
        inner: Optimizer = optimizer.optimizer
        return inner
