"""``lit-tidpo plugins``: importance estimators and losses that can be chosen."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module

from lit_tidpo.errors import InputError
from lit_tidpo.models.needs import describe_needs
from lit_tidpo.plugins.registry import (
    IMPORTANCE,
    LOSSES,
    distribution,
    examined,
    is_built_in,
    registered,
)

_BASES = {IMPORTANCE: "ImportanceEstimator", LOSSES: "LossComponent"}


def run(args: list[str]) -> None:
    """Print a table of all plugins, all that is known of them, or what they can ask for."""
    options = args[1:]
    if options == ["--needs"]:
        _print_table([("NEED", "SHAPE", "WHAT IT IS"), *describe_needs()])
    elif options == ["--json"]:
        from lit_tidpo.commands.catalogue import catalogue

        sys.stdout.write(json.dumps(list(catalogue()), indent=1) + "\n")
    elif options:
        raise InputError(f"plugins takes --needs, --json or nothing, got {options}")
    else:
        _print_table(
            [
                ("GROUP", "NAME", "CLASS", "DISTRIBUTION", "VERSION", "STATE"),
                *(row for group in _BASES for row in _rows(group)),
            ]
        )


def _rows(group: str) -> list[tuple[str, ...]]:
    """Rows of a group. Torch is imported if there is a plugin of others alone."""
    states = {entry: "ok" for entry in registered(group) if is_built_in(group, entry)}
    if len(states) < len(registered(group)):
        base: type = getattr(import_module(f"{group}.base"), _BASES[group])
        states = {entry: state for entry, _, state in examined(group, base)}
    return [
        (group, entry.name, entry.value, *distribution(entry).split(), state)
        for entry, state in states.items()
    ]


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns; the last one is as long as it is."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        sys.stdout.write("  ".join([*padded, last]) + "\n")
