"""What cannot be had where Lightning gathers weights for its own steps alone (FSDP1, ZeRO)."""

from __future__ import annotations

from lit_tidpo.errors import InputError
from lit_tidpo.strategies.family import Run, check_plain_layers

UNSHARED = "a layer is gathered for one pass at a time, and responses would reach back into prompts"
"""Why prompts are not shared."""


def check_whole_steps(run: Run, name: str) -> None:
    """Refuse what looks at the policy between steps, or trains through the attribution.

    Args:
        run: The run.
        name: Of the strategy.

    Raises:
        InputError: If the strategy cannot serve.
    """
    instead = "take configs/strategies/fsdp2.yaml or ddp.yaml"
    precision = run.precision.precision
    if precision != "32-true":
        raise InputError(
            f"precision={precision} with strategy {name} casts the policy's buffers, by which its "
            f"positions are computed, but not the reference's: set 32-true, or {instead}"
        )
    if run.config.dtype != "float32":
        raise InputError(
            f"policy.dtype={run.config.dtype} is not proven to be right with strategy {name}, "
            f"which casts the policy, but not the reference: set float32, or {instead}"
        )
    if run.trains_attribution:
        raise InputError(
            f"strategy {name} serves attribution and training by forward passes of their own, so "
            "that an importance that is learned, or a loss that takes gradients for the input, "
            f"would not be trained: {instead}"
        )
    if run.precomputes:
        raise InputError(
            f"model.importance_every=0 runs the policy before the first step, where strategy "
            f"{name} does not gather its weights: set another number, or {instead}"
        )
    check_plain_layers(run, name)
