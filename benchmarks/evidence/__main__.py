"""The laboratory's commands.

::

    python -m benchmarks.evidence run      # cells of the grid that have no result yet
    python -m benchmarks.evidence collect  # their results to evidence.json
    python -m benchmarks.evidence report   # evidence.json to report, plots and docs/findings.md
    python -m benchmarks.evidence quick    # the reduced grid, checked against stored intervals
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.cells import cells_of, source_hash
from benchmarks.evidence.collect import collect
from benchmarks.evidence.estimator_tables import merged
from benchmarks.evidence.grid import GRID, QUICK, ROOT, TUNING, Grid, read_grid
from benchmarks.evidence.quick import LeftIntervalError, check, store
from benchmarks.evidence.report import write_report
from benchmarks.evidence.runner import CellError, run_cells
from lit_tidpo.errors import InputError

RUNS = ROOT / "runs/evidence"
RESULTS = ROOT / "benchmarks/results"
STUDY = RUNS / "defects.json"
FINDINGS = ROOT / "docs/findings.md"
STORING_SEEDS = tuple(range(8))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of the laboratory.

    Args:
        arguments: Words of the command line; None takes the process's own.

    Raises:
        SystemExit: With status 1 if a cell fails or a result leaves its interval.
    """
    options = _parser().parse_args(arguments)
    try:
        options.function(options)
    except (CellError, InputError, LeftIntervalError) as error:
        sys.stderr.write(f"evidence: error: {error}\n")
        raise SystemExit(1) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    commands = parser.add_subparsers(required=True)
    functions: dict[str, Callable[[argparse.Namespace], None]] = {
        "run": _run,
        "collect": _collect,
        "report": _report,
        "quick": _quick,
    }
    for name, function in functions.items():
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name in ("run", "quick"):
            cores = len(os.sched_getaffinity(0))
            command.add_argument("--workers", type=int, default=cores, help="processes at a time")
        if name == "run":
            command.add_argument("--grid", type=Path, default=GRID)
            command.add_argument("--tables", nargs="+", help="these tables alone")
            command.add_argument("--methods", nargs="+", help="these methods alone")
            command.add_argument("--seeds", nargs="+", type=int, help="these seeds alone")
            command.add_argument("--tasks", nargs="+", help="these tasks alone")
        if name == "quick":
            command.add_argument(
                "--store", action="store_true", help="measure and store the intervals anew"
            )
    return parser


def _run(options: argparse.Namespace) -> None:
    chosen = [
        cell
        for ((task, table, method, _), seed), cell in cells_of(
            read_grid(options.grid), RUNS
        ).items()
        if (options.tables is None or table in options.tables)
        and (options.methods is None or method in options.methods)
        and (options.tasks is None or task in options.tasks)
        and (options.seeds is None or seed in options.seeds)
    ]
    run_cells(chosen, source_hash(), RUNS, options.workers)


def _collect(options: argparse.Namespace) -> None:
    if not STUDY.is_file():
        raise InputError(
            f"no study of the estimators at {STUDY}: run `python -m benchmarks.evidence.defects "
            f"--output {STUDY.relative_to(ROOT)}`"
        )
    study = json.loads(STUDY.read_text("utf-8"))
    if study.pop("source_hash") != source_hash():
        raise InputError(f"{STUDY} was measured with other code: delete it and measure it again")
    evidence = merged(collect(read_grid(GRID), RUNS), study)
    evidence["tuning"] = collect(read_grid(TUNING), RUNS)["tables"]
    RESULTS.mkdir(exist_ok=True)
    _write_json(RESULTS / "evidence.json", evidence)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(_rounded(content), indent=1, allow_nan=False) + "\n", "utf-8")


def _rounded(value: Any) -> Any:
    """Floats to 6 significant digits, which is more than seeds leave certain."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def _report(options: argparse.Namespace) -> None:
    evidence = json.loads((RESULTS / "evidence.json").read_text("utf-8"))
    write_report(evidence, RESULTS, FINDINGS)


def _quick(options: argparse.Namespace) -> None:
    grid = read_grid(QUICK)
    wider: Grid = dataclasses.replace(grid, seeds=STORING_SEEDS) if options.store else grid
    run_cells([*cells_of(wider, RUNS).values()], source_hash(), RUNS, options.workers)
    evidence = collect(wider, RUNS)
    if options.store:
        store(evidence, grid)
    else:
        print(check(evidence))


if __name__ == "__main__":
    main()
