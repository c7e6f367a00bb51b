"""The course of the learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal

LRSchedule = Literal["constant", "linear", "cosine"]


def rate_factor(schedule: LRSchedule, step: int, warmup_steps: int, steps: int) -> float:
    """Factor of the learning rate in an optimizer step.

    Args:
        schedule: Course after the warm-up: level, or down to 0 at the end.
        step: Optimizer steps done.
        warmup_steps: Steps over which it rises linearly from 0.
        steps: Steps of the run; ``constant`` does not ask for them.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    if schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2
