"""The optimizer of a run, and its learning rate from the first step to the last."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_tidpo.errors import InputError, check_choice, explained
from lit_tidpo.modules.learning_rate import LRSchedule, rate_factor
from lit_tidpo.modules.optimizer_settings import set_rate


class Optimization:
    """Makes the optimizer, and knows its learning rate at each step.

    Args:
        make: Makes the optimizer from the trainable parameters; None takes AdamW at 1e-6 without
            weight decay.
        lr_schedule: Course of the learning rate after the warm-up, step by step.
        warmup_steps: Optimizer steps over which it rises linearly from 0.

    Attributes:
        steps: Optimizer steps of the run; 0 while they are not known, and of a run without an end.

    Raises:
        InputError: If there is no such schedule.
    """

    def __init__(
        self, make: OptimizerCallable | None, lr_schedule: LRSchedule, warmup_steps: int
    ) -> None:
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: expected 0 or more")
        check_choice("lr_schedule", lr_schedule, LRSchedule)
        self.make = make or functools.partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0)
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.steps = 0
        self._found_rate: float | None = None

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """A new optimizer.

        Raises:
            InputError: If it cannot be made.
        """
        with explained("model.optimizer cannot be made"):
            optimizer = self.make(parameters)
        if self._found_rate is not None:
            set_rate([optimizer], [], self._found_rate)
        return optimizer

    def specimen(self) -> Optimizer:
        """An optimizer of nothing, whose settings can be looked at."""
        return self.optimizer([nn.Parameter(torch.zeros(1))])

    def scheduled(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer with the schedule of its rate, as Lightning takes them."""

        def factor(step: int) -> float:  # of a method, a checkpoint would hold the attributes
            return self._factor(step)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def _factor(self, step: int) -> float:
        return rate_factor(self.lr_schedule, step, self.warmup_steps, self.steps)

    def take_rate(self, rate: float, trainer: Trainer | None) -> None:
        """Start from another learning rate, which a search has found.

        Args:
            rate: The learning rate.
            trainer: Has optimizers and schedules that are there already.
        """
        self._found_rate = rate
        if trainer is not None:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            set_rate(trainer.optimizers, schedulers, rate)

    def begin(self, trainer: Trainer) -> None:
        """Find out when training ends.

        Args:
            trainer: About to train; asking it makes it start on the data.

        Raises:
            InputError: If the schedule needs an end, and there is none.
        """
        steps = trainer.estimated_stepping_batches
        endless = steps < 0 or not math.isfinite(steps)  # -1 is what endless data get
        if endless and self.lr_schedule != "constant":
            raise InputError(
                f"lr_schedule={self.lr_schedule!r} needs an end: set trainer.max_steps, or "
                "trainer.max_epochs with data of known length"
            )
        self.steps = 0 if endless else int(steps)
        if self._found_rate is not None and not trainer.global_step:
            # Lightning sets the found rate itself, and leaves out the warm-up.
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = self._found_rate * self._factor(0)
