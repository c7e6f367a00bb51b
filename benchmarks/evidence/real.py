"""The laboratory on a real model: ``configs/evidence/real``.

::

    python -m benchmarks.evidence.real run      # what has no result yet, in the grid's order
    python -m benchmarks.evidence.real study    # the estimators, before, during and after plain DPO
    python -m benchmarks.evidence.real collect  # what is complete, to real.json
    python -m benchmarks.evidence.real report   # real.json to docs/findings.md and docs/choosing.md
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.collect import collect, write_json
from benchmarks.evidence.grid import CONFIGS, Grid, cells_of, read_grid, starts_of
from benchmarks.evidence.real_report import write_pages
from benchmarks.evidence.real_units import measurements, policies_exist
from benchmarks.evidence.runner import RUNS, UnitError, run_units
from benchmarks.report import RESULTS, ROOT
from lit_tidpo.errors import InputError

RESULT = RESULTS / "real.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, with words of the command line; None takes the process's.

    Raises:
        SystemExit: With status 1 if a unit fails or input is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.real", description=__doc__)
    parser.add_argument("command", choices=["run", "study", "collect", "report"])
    parser.add_argument("--grid", type=Path, default=CONFIGS / "real/grid.yaml")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the results")
    parser.add_argument("--result", type=Path, default=RESULT, help="what collect writes")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--minutes", type=float, help="stop after these; the rest is for later")
    options = parser.parse_args(arguments)
    try:
        if options.command == "report":
            write_pages(json.loads(options.result.read_text(encoding="utf-8")))
            return
        grid = read_grid(options.grid.resolve())
        if options.command == "run":
            run(grid, options.runs.resolve(), options.workers, options.minutes)
        elif options.command == "study":
            study(grid, options.runs.resolve(), options.workers)
        else:
            write_json(collected(grid, options.runs.resolve()), options.result)
    except (UnitError, InputError) as error:
        sys.stderr.write(f"evidence: error: {error}\n")
        raise SystemExit(1) from error


def run(grid: Grid, folder: Path, workers: int, minutes: float | None) -> None:
    """Run what has no result: what cells start from, and the cells in the grid's order."""
    end = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    for units in (starts_of(grid, folder), [*cells_of(grid, folder).values()]):
        if not run_units(units, folder, workers, end):
            print(f"{minutes:g} minutes are over: the rest is left for the next time")
            return


def study(grid: Grid, folder: Path, workers: int) -> None:
    """Measure the estimators before plain DPO, during and after it where cells have been run."""
    run_units(starts_of(grid, folder), folder, workers)
    units = [unit for depths in measurements(grid, folder).values() for unit in depths.values()]
    run_units([unit for unit in units if policies_exist(unit)], folder, workers)


def collected(grid: Grid, folder: Path) -> dict[str, Any]:
    """The tables of entries that are complete, and the study, with the cost of all of it."""
    found = collect(grid, folder, partial=True)
    studied: dict[str, Any] = {}
    for source, depths in measurements(grid, folder).items():
        kept = {depth: unit.result(folder) for depth, unit in depths.items()}
        studied[source] = {
            depth: {**each["result"], "cpu_seconds": round(each["cpu_seconds"])}
            for depth, each in kept.items()
            if each is not None
        }
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    starts = {unit.name: unit.result(folder) for unit in starts_of(grid, folder)}
    found["provenance"] |= {
        "revision": revision.strip(),
        "wanted": len({unit.key for unit in cells_of(grid, folder).values()}),
        "wanted_methods": {name: list(table.methods) for name, table in grid.tables.items()},
        "starts": {
            name: {"cpu_seconds": round(each["cpu_seconds"]), **each["result"]}
            for name, each in starts.items()
            if each is not None
        },
    }
    return {**found, "study": studied}


if __name__ == "__main__":
    main()
