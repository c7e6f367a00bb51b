"""``lit-tidpo schema``: a JSON schema of configurations, for editors to complete and check by."""

from __future__ import annotations

import json
import sys
from typing import Any

from lit_tidpo.commands.option_sources import Option
from lit_tidpo.commands.options import COMMON, RESUME, TRAINING, choices, command_options
from lit_tidpo.errors import InputError

_PLAIN = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_OTHER_NAMES: dict[str, Any] = {"\\.": {}}
"""Names with dots in one key are a way to write them, too."""


def run(args: list[str]) -> None:
    """Print the schema of a command's configurations."""
    words = args[1:] or ["fit"]
    sft = words[0] == "sft"
    if len(words) != 1 + sft or words[-1] not in TRAINING[: 3 if sft else 4]:
        raise InputError(f"schema takes a command, such as fit or sft fit, got {' '.join(words)!r}")
    sys.stdout.write(json.dumps(schema(words[-1], sft), indent=1) + "\n")


def schema(command: str, sft: bool = False) -> dict[str, Any]:
    """JSON schema of the configurations of a command.

    jsonargparse 4.53 has one, which fails on types of the Trainer.

    Args:
        command: One of :data:`~lit_tidpo.commands.options.TRAINING`.
        sft: Whether it stands behind ``sft``.
    """
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"lit-tidpo {'sft ' * sft}{command}",
        **_holder(),
    }
    for options in command_options(command, sft).values():
        for option in options:
            if option in (*COMMON, RESUME):
                continue  # typed alone
            *holders, name = option.name.split(".")
            place = root
            for holder in holders:
                place = place["properties"].setdefault(holder, _holder())
            place["properties"][name] = _leaf(option)
    return root


def _holder() -> dict[str, Any]:
    """Options below a name, or the file that holds them."""
    return {
        "type": ["object", "string", "null"],
        "properties": {},
        "patternProperties": _OTHER_NAMES,
        "additionalProperties": False,
    }


def _leaf(option: Option) -> dict[str, Any]:
    """What an option admits; where that is a class of one's own, anything."""
    told: dict[str, Any] = {"description": option.text.replace("``", "")}
    named = None if option.kind == "bool" else choices(option)
    kinds = option.kind.split(" | ")
    if named and not option.kind.startswith("{"):  # names of plugins, or a class with arguments
        told["anyOf"] = [{"enum": named}, {"type": ["string", "object", "null"]}]
    elif named:
        told["enum"] = [*named, None] if option.default == "None" else named
    elif all(kind in _PLAIN for kind in kinds):
        told["type"] = [*(_PLAIN[kind] for kind in kinds), "null"]
    return told
