"""Whether a run can go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.policy import lora_options


def check_checkpoint(
    path: str,
    checkpoint: dict[str, Any],
    option: Callable[[str], Any],
    is_sft: bool,
    is_fit: bool,
) -> None:
    """Refuse a checkpoint of another kind of run, and tell of what makes another reference.

    Args:
        path: Where it is, for messages.
        checkpoint: Its content.
        option: Gives an option of this run's model by its name, such as ``policy.path``.
        is_sft: Whether this run is supervised fine-tuning.
        is_fit: Whether it trains.

    Raises:
        InputError: If this run cannot use it.
    """
    with explained(f"checkpoint {path!r} is of another make"):
        saved = dict(checkpoint.get("hyper_parameters") or {})
        policy = dict(saved.get("policy") or {})
        lora = lora_options(policy.get("lora"))
        checkpoint["pytorch-lightning_version"]
    was_sft = bool(saved) and "losses" not in saved
    if saved and was_sft != is_sft:
        raise InputError(
            f"checkpoint {path!r} is of {'sft' if was_sft else 'preference'} training: export it "
            "and start from it as model.policy.path"
        )
    has = lora_options(option("policy.lora"))
    if lora != has:
        raise InputError(
            f"checkpoint {path!r} was trained with policy.lora={lora}, but this run has "
            f"model.policy.lora={has}: give it the configuration that was saved beside the "
            "checkpoint's logs"
        )
    names = ("path", "revision", "init", "init_seed", "adapter", "added_tokens")
    before = {f"policy.{name}": policy[name] for name in names if name in policy}
    before |= {"reference": saved["reference"]} if "reference" in saved else {}
    changed = [
        f"model.{name}={value!r} (was {old!r})"
        for name, old in before.items()
        if (value := option(name)) != old
    ]
    if changed and is_fit and not was_sft:
        rank_zero_warn(
            f"resuming with {', '.join(changed)}: the policy comes from the checkpoint, but what "
            "it is compared with does not"
        )
