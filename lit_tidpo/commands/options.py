"""The options of each command, and whether what was typed is one of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from importlib.metadata import entry_points

from lit_tidpo.commands.option_sources import Option, read_options
from lit_tidpo.errors import InputError
from lit_tidpo.plugins.configurations import named_keys
from lit_tidpo.plugins.registry import IMPORTANCE

TRAINING = ("fit", "validate", "test", "predict")

LINKED = {
    "data.tokenizer": "model.policy.path",
    "data.tokenizer_revision": "model.policy.revision",
    "data.tokenizer_gguf_file": "model.policy.gguf_file",
    "data.added_tokens": "model.policy.added_tokens",
    "data.trust_remote_code": "model.policy.trust_remote_code",
}
"""Options that follow others, and cannot be typed."""
LOOKAHEAD = "data.lookahead"
"""Follows the anchors' options, where there are anchors."""

FUNCTIONS = {
    "export": "lit_tidpo.models.export.export_checkpoint",
    "explain": "lit_tidpo.commands.explain.explain_pairs",
    "audit": "lit_tidpo.commands.audit.audit_pairs",
    "evaluate": "lit_tidpo.commands.evaluate.evaluate",
    "data": "lit_tidpo.commands.data.show_data",
}
"""The function of each command that is one."""

_MODULES = {
    False: "lit_tidpo.modules.preference.PreferenceModule",
    True: "lit_tidpo.modules.sft.SFTModule",
}
_TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
_NO_OPTIONS = ("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")
"""Arguments of a Trainer's methods that the command makes itself."""


COMMON = (
    Option("config", "FILE", "", "Configuration; several stack up, the later one counts."),
    Option("print_config", "", "", "Print what would run, and end."),
    Option("help", "", "", "This page, and end."),
)
RUN = Option(
    "run",
    "NAME",
    "",
    "Name of the run: its files are in trainer.default_root_dir/NAME, by default runs/NAME, and "
    "validate, test and predict take its last checkpoint.",
)
RESUME = Option(
    "resume",
    "",
    "",
    "Go on from the newest complete checkpoint of the run, or start where there is none: the same "
    "line starts a run and goes on with it. Typed, not in a configuration.",
)
SEED = Option("seed_everything", "int | bool", "0", "Seed of what components of your own draw.")
_OURS = {
    "ckpt_path": "File or folder of a checkpoint; 'last' or 'best' of this run's (--run).",
    "weights_only": "Whether reading the checkpoint may make nothing but tensors and plain values.",
}
"""What is told of Lightning's options that are something else here."""


def command_options(command: str, sft: bool = False) -> dict[str, list[Option]]:
    """Options of a command that runs a Trainer, in groups.

    Args:
        command: One of :data:`TRAINING`.
        sft: Whether it stands behind ``sft``.

    Returns:
        By the prefix of the group's names, which is empty for options without one.
    """
    method = [
        option
        for option in read_options(f"{_TRAINER}.{command}", "")
        if option.name not in _NO_OPTIONS and not option.name.startswith("_")
    ]
    groups = {
        "": [*COMMON, RUN, *([RESUME] if command == "fit" else []), SEED, *method],
        "model": list(read_options(_MODULES[sft], "model")),
        "data": list(read_options("lit_tidpo.data.datamodule.PreferenceDataModule", "data")),
    }
    if not sft:
        groups["tokens"] = list(
            read_options("lit_tidpo.callbacks.token_writer.TokenWriter", "tokens")
        )
    groups["trainer"] = list(read_options(_TRAINER, "trainer"))
    linked = {*LINKED, *(() if sft else (LOOKAHEAD,))}
    return {
        prefix: [
            dataclasses.replace(
                each, linked=each.name in linked, text=_OURS.get(each.name, each.text)
            )
            for each in options
        ]
        for prefix, options in groups.items()
    }


def choices(option: Option) -> list[str] | None:
    """What can be typed for an option, where that is a list of names; plugins by theirs."""
    if option.kind.startswith("{"):
        return option.kind[1:-1].split(",")
    if option.kind == "bool":
        return ["true", "false"]
    if option.kind == "ImportanceEstimator":
        return sorted(entry_points(group=IMPORTANCE).names)
    return None


def check_names(words: Sequence[str]) -> None:
    """Refuse options, typed or in configurations, that no class of the command has.

    What stands below the name of a component is left to the parser, which knows its class, and so
    is everything where options stand before the command.

    Args:
        words: All words of the command.

    Raises:
        InputError: With the name that is nearest.
    """
    sft = words[0] == "sft"
    command, *given = words[1:] if sft else words
    if command not in TRAINING:
        return
    known = {option.name for group in command_options(command, sft).values() for option in group}
    typed = [(word[2:].partition("=")[0].rstrip("+"), "") for word in given if word[:2] == "--"]
    for name, place in [*typed, *named_keys(given)]:
        if _is_known(name.removesuffix(".help"), known):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        page = f"lit-tidpo {'sft ' * sft}{command} --help"
        raise InputError(f"{place or 'no'} option {name!r}{hint}; {page} lists all")


def _is_known(name: str, known: set[str]) -> bool:
    """Whether an option, what holds it, or what it holds has this name."""
    places = [end for end, letter in enumerate(name) if letter == "."]
    holders = (name[:end] for end in places)
    return (
        name in known
        or any(each in known for each in holders)
        or any(each.startswith(f"{name}.") for each in known)
    )


def function_options(command: str) -> list[Option]:
    """Options of a command that is a function.

    Args:
        command: One of :data:`FUNCTIONS`.
    """
    return list(read_options(FUNCTIONS[command], ""))
