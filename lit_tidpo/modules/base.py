"""What the modules share: a policy, its optimizer and the strategies they run under."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.modules.hparams import plain
from lit_tidpo.policy import PolicyConfig, build_policy

LRSchedule = Literal["constant", "linear", "cosine"]


class PolicyModule(LightningModule):
    """A LightningModule around one language model.

    Args:
        policy: The model to train.
        optimizer: Makes the optimizer from the trainable parameters; AdamW at 1e-6 without weight
            decay by default.
        lr_schedule: Course of the learning rate after the warm-up, step by step.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
    """

    policy: nn.Module | None

    def __init__(
        self,
        policy: PolicyConfig,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: LRSchedule = "constant",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: expected 0 or more")
        self.policy = None
        self.policy_config = policy
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps

    def _remember_arguments(self, arguments: dict[str, Any]) -> None:
        """Save the constructor's arguments as the command line would.

        Args:
            arguments: ``locals()`` of the constructor.
        """
        names = inspect.signature(type(self).__init__).parameters
        values = {name: plain(arguments[name]) for name in names if name != "self"}
        values["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        # Under LightningCLI this stores what was parsed instead, which reads the same.
        self.save_hyperparameters(values)

    def setup(self, stage: str) -> None:
        """Refuse a strategy under which gradients or attributions would be wrong or unproven."""
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and strategy.launcher is not None:
            if strategy._start_method != "popen":
                raise InputError(
                    f"strategy ddp_{strategy._start_method} returns a module without its trained "
                    "policy to the parent process: use strategy=ddp"
                )
        elif not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)):
            raise InputError(
                f"strategy {type(strategy).__name__} is not supported yet: gradient attribution "
                "and the frozen reference are proven for one device and for strategy=ddp"
            )

    def configure_model(self) -> None:
        """Build the policy, once."""
        if self.policy is None:
            self.policy = build_policy(self.policy_config)

    @property
    def built_policy(self) -> nn.Module:
        """The policy.

        Raises:
            InputError: If it has not been built yet.
        """
        if self.policy is None:
            raise InputError(
                "the policy is not built yet: a Trainer builds it, or call configure_model()"
            )
        return self.policy

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the trainable parameters and the schedule of its rate."""
        from transformers import get_scheduler

        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer is None:
            self.optimizer = functools.partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0)
        optimizer = self.optimizer(parameters)
        name = "constant_with_warmup" if self.lr_schedule == "constant" else self.lr_schedule
        scheduler = get_scheduler(name, optimizer, self.warmup_steps, self._training_steps())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _training_steps(self) -> int | None:
        if self.lr_schedule == "constant":
            return None
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise InputError(
                f"lr_schedule={self.lr_schedule!r} needs an end: set trainer.max_steps, or "
                "trainer.max_epochs with data of known length"
            )
        return int(steps)

    def _mean(self, values: Tensor, amounts: Tensor) -> Tensor:
        """Mean over examples whose gradient is right under DDP and gradient accumulation.

        DDP averages over ranks and Lightning divides by ``accumulate_grad_batches``, whatever the
        amounts on a rank and however short the last window: both are undone here.

        Args:
            values: Sums to average, ``[B]``.
            amounts: What each value counts for, ``[B]``.

        Returns:
            Scalar to backpropagate.
        """
        amount = amounts.sum().to(values.dtype)
        world = self.trainer.world_size
        if world > 1:
            amount = self.trainer.strategy.reduce(amount.clone(), reduce_op="sum") / world
        return values.sum() / amount.clamp(min=1e-9) * self._window_factor()

    def _window_factor(self) -> float:
        """``accumulate_grad_batches`` over the number of batches in the current window."""
        accumulated = self.trainer.accumulate_grad_batches
        batches = self.trainer.num_training_batches
        if accumulated == 1 or not math.isfinite(batches):
            return 1.0
        done = self.trainer.fit_loop.epoch_loop.batch_idx // accumulated * accumulated
        return accumulated / min(accumulated, batches - done)
