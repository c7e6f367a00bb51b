"""Settings of an optimizer that a run goes on with, and those that cannot count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lit_tidpo.errors import InputError


def kept_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Which optimizer it is, and its settings, for a checkpoint."""
    return {"name": type(optimizer).__name__, "settings": _plain(optimizer.defaults)}


def apply_settings(checkpoint: dict[str, Any], make: Callable[[], Optimizer]) -> None:
    """Give a checkpoint's optimizer the settings of this run, where they are others.

    Args:
        checkpoint: What is resumed from; changed in place.
        make: Makes this run's optimizer of anything.

    Raises:
        InputError: If it is another optimizer, has no state, or its settings cannot be reached.
    """
    if checkpoint.get("optimizer_states") == []:
        raise InputError(
            "the checkpoint holds no state of its optimizer, so that a run cannot go on from it: "
            "export it and start from it as model.policy.path"
        )
    saved = checkpoint.get("optimizer")
    if saved is None:
        return
    now = make()
    if type(now).__name__ != saved["name"]:
        raise InputError(
            f"the checkpoint's optimizer is {saved['name']}, but model.optimizer is "
            f"{type(now).__name__}, which its state does not fit: take {saved['name']}, or "
            "export the checkpoint and start from it as model.policy.path"
        )
    settings = _plain(now.defaults)
    changed = {k: v for k, v in settings.items() if saved["settings"].get(k) != v}
    if not changed:
        return
    words = ", ".join(f"{k}={v} (was {saved['settings'].get(k)})" for k, v in changed.items())
    states = checkpoint.get("optimizer_states")
    if not states:
        raise InputError(
            f"model.optimizer has {words}, which a sharded checkpoint cannot be resumed with: "
            "take the checkpoint's settings"
        )
    rank_zero_warn(f"resuming with other settings of the optimizer: {words}")
    for group in (group for state in states for group in state["param_groups"]):
        if "lr" in changed:
            before = group.get("initial_lr") or group["lr"]
            group["lr"] *= changed["lr"] / before if before else 1.0
            group["initial_lr"] = changed["lr"]
        group.update({k: v for k, v in changed.items() if k != "lr"})
    if "lr" in changed:
        for schedule in checkpoint.get("lr_schedulers", []):
            schedule["base_lrs"] = [changed["lr"]] * len(schedule["base_lrs"])


def set_rate(optimizers: Iterable[Optimizer], schedulers: Iterable[Any], rate: float) -> None:
    """Give optimizers, and what schedules their rates, another rate to start from."""
    for optimizer in optimizers:
        optimizer.defaults["lr"] = rate
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = rate
    for scheduler in schedulers:
        scheduler.base_lrs = [rate] * len(scheduler.base_lrs)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a checkpoint can hold."""
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in settings.items()
        if isinstance(value, plain)
        or (isinstance(value, tuple) and all(isinstance(each, plain) for each in value))
    }


def tell_of_lost_steps(parameters: list[nn.Parameter], rate: Any) -> None:
    """Warn if most steps of a learning rate are smaller than what the parameters can hold."""
    coarse = [p for p in parameters if p.dtype in (torch.bfloat16, torch.float16)]
    if not coarse or not isinstance(rate, float):
        return
    # A step of Adam is about the rate; one below half the distance of two numbers is lost.
    lost = sum(
        int((p.detach().abs().float() * torch.finfo(p.dtype).eps / 4 > rate).sum()) for p in coarse
    )
    share = lost / sum(p.numel() for p in coarse)
    if share > 0.5:
        rank_zero_warn(
            f"steps of lr={rate:g} are lost in {share:.0%} of the weights, because "
            f"{coarse[0].dtype} cannot hold them: set model.policy.stochastic_rounding=true (with "
            "model.policy.dtype=bfloat16), or model.policy.dtype=float32 (with "
            "trainer.precision=bf16-mixed), or raise the learning rate"
        )
