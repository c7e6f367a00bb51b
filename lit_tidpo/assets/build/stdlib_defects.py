"""Make the shipped preference set: functions of the standard library and defective versions.

Run ``python -m lit_tidpo.assets.build.stdlib_defects FOLDER``. The same Python release makes the
same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_tidpo.assets.build.defects import Defect, plant_defects, spans_hold
from lit_tidpo.assets.build.functions import (
    BODY_LINES,
    MAX_PROMPT,
    MAX_TOTAL,
    StdlibFunction,
    stdlib_functions,
)
from lit_tidpo.assets.build.rules import RULES
from lit_tidpo.assets.build.source import parse

Row = dict[str, Any]

SEED = 0
DEFECTS_PER_FUNCTION = 3
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
OPTIONS = {
    "seed": SEED,
    "defects_per_function": DEFECTS_PER_FUNCTION,
    "max_prompt_characters": MAX_PROMPT,
    "max_total_characters": MAX_TOTAL,
    "body_lines": [min(BODY_LINES), max(BODY_LINES)],
}


def _order(*parts: object) -> str:
    """A key that shuffles: the same in each process and on each machine."""
    return hashlib.sha256("\0".join(map(str, (SEED, *parts))).encode()).hexdigest()


def preference_rows(functions: Iterable[StdlibFunction]) -> list[Row]:
    """Plant a few defects in each function, so that the kinds come out as even as they can.

    Args:
        functions: The functions.

    Returns:
        One row per defect, shuffled. Defects of one function do not overlap.
    """
    left = {function: plant_defects(function.prompt, function.body) for function in functions}
    used: Counter[str] = Counter()
    rows = []
    for _ in range(DEFECTS_PER_FUNCTION):
        for function in sorted(left, key=lambda f: _order(f.prompt, f.body)):
            if not left[function]:
                continue
            ranks = ((used[d.kind], _order(d.rejected), d) for d in left[function])
            defect = min(ranks, key=lambda rank: rank[:2])[2]
            used[defect.kind] += 1
            start, end = defect.chosen_span
            left[function] = [
                d for d in left[function] if d.chosen_span[1] <= start or end <= d.chosen_span[0]
            ]
            rows.append(_row(function, defect))
    return sorted(rows, key=lambda row: str(row["id"]))


def _row(function: StdlibFunction, defect: Defect) -> Row:
    return {
        "prompt": function.prompt,
        "chosen": function.body,
        "rejected": defect.rejected,
        "chosen_span": [*defect.chosen_span],
        "rejected_span": [*defect.rejected_span],
        "defect": defect.kind,
        "module": function.module,
        "qualname": function.qualname,
        "id": _order(function.prompt, function.body, defect.rejected)[:12],
    }


def unit(row: Row) -> str:
    """What stays in one split as a whole: the top-level module or package of a row."""
    return str(row["module"]).partition(".")[0]


def split_units(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Share the top-level modules out, about 80/10/10 by rows.

    Args:
        rows: All rows.

    Returns:
        Sorted modules of each split. A module with more than a fifth of the rows of a smaller
        split is in ``train``, so that the others are a mixture.
    """
    sizes = Counter(map(unit, rows))
    most = sizes.total() * min(SHARES.values()) / 5
    filled: Counter[str] = Counter()
    units: dict[str, list[str]] = {split: [] for split in SHARES}
    for name in sorted(sizes, key=lambda name: (sizes[name] <= most, _order(name))):
        splits = SHARES if sizes[name] <= most else ["train"]
        split = min(splits, key=lambda split: filled[split] / SHARES[split])
        filled[split] += sizes[name]
        units[split].append(name)
    return {split: sorted(names) for split, names in units.items()}


def check_row(row: Row) -> None:
    """Check one row of the set.

    Args:
        row: The row.

    Raises:
        ValueError: If its spans are wrong or a side is not Python.
    """
    sides = row["chosen"], row["rejected"]
    if not spans_hold(*sides, tuple(row["chosen_span"]), tuple(row["rejected_span"])):
        raise ValueError(f"row {row['id']}: the sides differ outside of their spans")
    if not row["prompt"].endswith('"""') or not all(side.startswith("\n") for side in sides):
        raise ValueError(f"row {row['id']}: the docstring and a newline must be at the boundary")
    for side in sides:
        parse(row["prompt"] + side)


def build(folder: Path) -> dict[str, Any]:
    """Make the files of the set.

    Args:
        folder: Where to write ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and
            ``manifest.json``.

    Returns:
        The manifest: Python version, options, and the rows, kinds and digest of each file.
    """
    rows = preference_rows(stdlib_functions())
    for row in rows:
        check_row(row)
    units = split_units(rows)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, names in units.items():
        own = [row for row in rows if unit(row) in names]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own).encode()
        (folder / f"{split}.jsonl").write_bytes(data)
        kinds = Counter(row["defect"] for row in own)
        files[f"{split}.jsonl"] = {
            "rows": len(own),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "defects": {kind: kinds[kind] for kind in RULES},
        }
    manifest = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "options": OPTIONS,
        "files": files,
    }
    manifest |= {"modules": units}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the set and print a summary."""
    parser = argparse.ArgumentParser(description="Make the preference set of planted defects.")
    parser.add_argument("folder", type=Path, help="where to write the files")
    manifest = build(parser.parse_args(arguments).folder)
    print(f"Python {manifest['python']}")
    for name, file in manifest["files"].items():
        print(f"{name}: {file['rows']} rows, {file['bytes']:,} bytes, {file['defects']}")


if __name__ == "__main__":
    main()
