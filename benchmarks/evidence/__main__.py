"""The laboratory's commands.

::

    python -m benchmarks.evidence run      # what has no result yet: learning rates, grid, study
    python -m benchmarks.evidence collect  # the results to evidence.json
    python -m benchmarks.evidence report   # evidence.json to report, plots and docs/findings.md
    python -m benchmarks.evidence quick    # a reduced grid, checked against stored intervals
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.collect import collect, write_json
from benchmarks.evidence.defects.study import measurement, trainings
from benchmarks.evidence.grid import CONFIGS, cells_of, read_grid, read_yaml
from benchmarks.evidence.intervals import prediction_interval
from benchmarks.evidence.report import write_report
from benchmarks.evidence.runner import RUNS, UnitError, results_of, run_units
from benchmarks.report import RESULTS, ROOT
from lit_tidpo.errors import InputError

EVIDENCE = RESULTS / "evidence.json"
FINDINGS = ROOT / "docs/findings.md"
STORED = Path(__file__).with_name("quick_intervals.json")
STORING_SEEDS = tuple(range(8))
CHECKED = (
    *("test/rewards/accuracies", "test/rewards/margins"),
    *("test/answers/right", "diversity/self_bleu"),
)
_LEVEL = 0.999
# Other machines round otherwise, and a greedy answer or a rank may flip: the least half-width.
_LEAST = 0.02


class LeftIntervalError(RuntimeError):
    """A result is outside its interval."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of the laboratory, with words of the command line; None takes the process's.

    Raises:
        SystemExit: With status 1 if a unit fails or a result leaves its interval.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("command", choices=["run", "collect", "report", "quick"])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="processes at a time")
    parser.add_argument("--store", action="store_true", help="measure the intervals of quick anew")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            run(options.workers)
        elif options.command == "collect":
            write_evidence()
        elif options.command == "report":
            write_report(json.loads(EVIDENCE.read_text(encoding="utf-8")), RESULTS, FINDINGS)
        else:
            quick(options.workers, options.store)
    except (UnitError, InputError, LeftIntervalError) as error:
        sys.stderr.write(f"evidence: error: {error}\n")
        raise SystemExit(1) from error


def run(workers: int) -> None:
    """Run what has no result yet; the study's models come before what measures them."""
    study = read_yaml("configs/evidence/defects.yaml")
    units = [unit for units in trainings(study).values() for unit in units]
    for name in ("tuning", "grid"):
        units += cells_of(read_grid(CONFIGS / f"{name}.yaml")).values()
    run_units(units, RUNS, workers)
    run_units([measurement(study, RUNS)], RUNS, workers)


def write_evidence() -> None:
    """Write ``evidence.json``, with 6 significant digits: more than seeds leave certain."""
    evidence = collect(read_grid(CONFIGS / "grid.yaml"))
    study = measurement(read_yaml("configs/evidence/defects.yaml"), RUNS)
    evidence |= results_of([study], RUNS)[0]["result"]
    evidence["tuning"] = collect(read_grid(CONFIGS / "tuning.yaml"))["tables"]
    write_json(evidence, EVIDENCE)


def quick(workers: int, anew: bool) -> None:
    """Run the reduced grid, and check its results, or store where they will lie."""
    grid = read_grid(CONFIGS / "quick.yaml")
    wider = dataclasses.replace(grid, seeds=STORING_SEEDS) if anew else grid
    run_units([*cells_of(wider).values()], RUNS, workers)
    if anew:
        store(collect(wider), len(grid.seeds))
    else:
        print(check(collect(grid)))


def store(evidence: dict[str, Any], seeds: int) -> None:
    """Keep where the mean over some seeds will lie, from results of at least 5 of them."""
    intervals = {}
    for name, found in _checked(evidence).items():
        low, high = prediction_interval([*found["seeds"].values()], seeds, _LEVEL)
        ends = (min(low, found["mean"] - _LEAST), max(high, found["mean"] + _LEAST))
        intervals[name] = [round(end, 4) for end in ends]
    content = {"seeds": evidence["provenance"]["seeds"], "level": _LEVEL, "intervals": intervals}
    STORED.write_text(json.dumps(content, indent=1), encoding="utf-8")


def check(evidence: dict[str, Any]) -> str:
    """A line for each result of the reduced grid.

    Raises:
        LeftIntervalError: If a result is outside its interval, or has none or is missing.
    """
    intervals = json.loads(STORED.read_text(encoding="utf-8"))["intervals"]
    found = _checked(evidence)
    if found.keys() != intervals.keys():
        raise LeftIntervalError(
            f"results and intervals differ in {sorted(found.keys() ^ intervals.keys())}: run "
            "`python -m benchmarks.evidence quick --store`"
        )
    lines = []
    for name, (low, high) in intervals.items():
        inside = "ok  " if low <= found[name]["mean"] <= high else "LEFT"
        lines.append(f"{inside} {name}: {found[name]['mean']:.4f} in [{low}, {high}]")
    wrong = [line for line in lines if line.startswith("LEFT")]
    if wrong:
        raise LeftIntervalError("\n".join(["results left their intervals:", *wrong]))
    return "\n".join(lines)


def _checked(evidence: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{task} {method} {metric}": settings["default"]["metrics"][metric]
        for task, methods in evidence["tables"]["table1"]["results"].items()
        for method, settings in methods.items()
        for metric in CHECKED
        if metric in settings["default"]["metrics"]
    }


if __name__ == "__main__":
    main()
