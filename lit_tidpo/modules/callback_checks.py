"""Callbacks of Lightning's that would do nothing, or something else, with a policy of ours."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)

from lit_tidpo.errors import InputError

_ALWAYS: dict[type[Callback], str] = {
    ModelPruning: "puts masks in the place of weights under other names, which neither the "
    "reference nor an export has: prune the exported model",
    BackboneFinetuning: "freezes an attribute backbone of the module, which has none: train "
    "adapters by model.policy.lora",
}
_BEFORE_THE_POLICY: dict[type[Callback], str] = {
    StochasticWeightAveraging: "copies the module before the Trainer has built the policy, and "
    "would average nothing: take WeightAveraging, or call module.configure_model() before fit",
}


def check_callbacks(trainer: Trainer, is_built: bool) -> None:
    """Refuse callbacks that cannot work, with the reason and what does.

    Args:
        trainer: The Trainer, before ``fit``.
        is_built: Whether the policy is there already; otherwise the Trainer has it built later.

    Raises:
        InputError: If there is such a callback.
    """
    refused = _ALWAYS if is_built else {**_ALWAYS, **_BEFORE_THE_POLICY}
    for callback in vars(trainer)["callbacks"]:
        for kind, reason in refused.items():
            if isinstance(callback, kind):
                raise InputError(f"{kind.__name__} {reason}")


def check_finders(trainer: Trainer) -> None:
    """Refuse searches where a run goes on from a checkpoint: each restart would find another value.

    Args:
        trainer: The Trainer, while a checkpoint is loaded.

    Raises:
        InputError: If there is such a callback.
    """
    for callback in vars(trainer)["callbacks"]:
        if isinstance(callback, (LearningRateFinder, BatchSizeFinder)):
            raise InputError(
                f"{type(callback).__name__} searches before a run starts, and this one goes on "
                "from a checkpoint: leave it out, and set model.optimizer.lr or "
                "data.batch_size to what was found"
            )


def check_monitors(trainer: Trainer) -> None:
    """Refuse to watch margins and accuracies, which are of pairs, of single responses.

    Args:
        trainer: The Trainer, before it runs.

    Raises:
        InputError: If a callback does; Lightning would find out after the first validation.
    """
    for callback in vars(trainer)["callbacks"]:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.endswith(("/margins", "/accuracies")):
            raise InputError(
                f"{type(callback).__name__} watches {monitor!r}, which is of pairs, but the data "
                "hold single responses with a label: give it another monitor, such as "
                "'val/rewards/chosen'"
            )
