"""Train and eval mode, and what draws random numbers or changes weights by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in a model to 0.

    Attention layers keep theirs as a plain number (``attention_dropout``), which is no
    ``nn.Dropout``, and some read theirs from the config at each forward: all kinds are set.

    Args:
        model: Changed in place, with its config.
    """
    holders: list[object] = list(model.modules())
    config = getattr(model, "config", None)
    if config is not None:
        holders += [config, config.get_text_config()]
    for holder in holders:
        if isinstance(holder, nn.Dropout):
            holder.p = 0.0
        for name, value in vars(holder).items():
            if "drop" in name and isinstance(value, float):  # layerdrop, resid_pdrop, ...
                setattr(holder, name, 0.0)
            elif "jitter" in name and value and isinstance(holder, nn.Module):
                holder.eval()  # Phi-MoE draws its experts in train mode


def keep_weights(model: Any) -> None:
    """Keep a model from changing its weights by its mode: RWKV halves them in eval mode, in place.

    A checkpoint written then would hold them so, and a graph would break.
    """
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0
