"""``lit-tidpo plugins``: importance estimators and losses that can be chosen."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.models.needs import describe_needs
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES, distribution, inspect


def run(args: list[str]) -> None:
    """Print a table of all plugins, or of what they can ask for."""
    options = args[1:]
    if options == ["--needs"]:
        _print_table([("NEED", "SHAPE", "WHAT IT IS"), *describe_needs()])
        return
    if options:
        raise InputError(f"plugins takes --needs or nothing, got {options}")
    bases: dict[str, type] = {IMPORTANCE: ImportanceEstimator, LOSSES: LossComponent}
    rows = [("GROUP", "NAME", "CLASS", "DISTRIBUTION", "VERSION", "STATE")]
    for group, base in bases.items():
        for entry, class_path, state in inspect(group, base):
            owner, version = distribution(entry).split()
            rows.append((group, entry.name, class_path, owner, version, state))
    _print_table(rows)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns; the last one is as long as it is."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        sys.stdout.write("  ".join([*padded, last]) + "\n")
