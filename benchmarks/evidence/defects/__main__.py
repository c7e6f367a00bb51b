"""Measure how well the estimators find the planted defects.

::

    python -m benchmarks.evidence.defects --output FILE.json [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.cells import source_hash
from benchmarks.evidence.defects.study import results
from benchmarks.evidence.defects.subject import Extent, Subject

QUICK = Extent(
    seeds=2,
    steps=2,
    rows=8,
    other_rows=50,
    detail_rows=3,
    cost_pairs=2,
    integration_steps=2,
    detectors=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, measure, and write the results.

    Args:
        arguments: Words of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.defects")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/evidence/defects"),
        help="where trained policies and detectors are kept",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few rows and hardly trained policies: shows that all runs, not what is found",
    )
    options = parser.parse_args(arguments)
    extent = QUICK if options.quick else Extent()
    source = source_hash()
    if options.output.exists() and _is_of(options.output, source, extent):
        _tell(f"{options.output} is of this code already")
        return
    measured = {"source_hash": source, **results(Subject(extent, options.folder, _tell))}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _is_of(file: Path, source: str, extent: Extent) -> bool:
    study = json.loads(file.read_text(encoding="utf-8"))
    same: bool = study["source_hash"] == source
    return same and study["settings"].items() >= vars(extent).items()


def _tell(line: str) -> None:
    sys.stderr.write(f"defects: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
