"""A reduced grid whose results must stay within intervals that were measured before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.evidence.grid import Grid
from benchmarks.evidence.intervals import prediction_interval
from benchmarks.evidence.run_cell import write

STORED = Path(__file__).with_name("quick_intervals.json")

_LEVEL = 0.999
# Other machines round otherwise, and a greedy answer or a rank may flip: the least half-width.
_LEAST = 0.02


class LeftIntervalError(RuntimeError):
    """A result is outside its interval."""


def store(evidence: dict[str, Any], grid: Grid) -> None:
    """Keep where the mean over the quick grid's seeds will lie, from a run with more seeds.

    Args:
        evidence: Collected results of the quick grid with at least 5 seeds.
        grid: The quick grid as it is checked.
    """
    intervals = {}
    for name, entry in _means(evidence):
        low, high = prediction_interval([*entry["seeds"].values()], len(grid.seeds), _LEVEL)
        intervals[name] = [
            round(min(low, entry["mean"] - _LEAST), 4),
            round(max(high, entry["mean"] + _LEAST), 4),
        ]
    seeds = evidence["provenance"]["seeds"]
    write(STORED, {"seeds": seeds, "level": _LEVEL, "intervals": intervals})


def check(evidence: dict[str, Any]) -> str:
    """Compare results of the quick grid with the stored intervals.

    Args:
        evidence: Its collected results.

    Returns:
        A line for each result.

    Raises:
        LeftIntervalError: If a result is outside its interval, or has none or is missing.
    """
    intervals = json.loads(STORED.read_text(encoding="utf-8"))["intervals"]
    found = {name: entry["mean"] for name, entry in _means(evidence)}
    if found.keys() != intervals.keys():
        raise LeftIntervalError(
            f"results and intervals differ in {sorted(found.keys() ^ intervals.keys())}: run "
            "`python -m benchmarks.evidence quick --store`"
        )
    lines, wrong = [], []
    for name, value in found.items():
        low, high = intervals[name]
        inside = low <= value <= high
        lines.append(f"{'ok  ' if inside else 'LEFT'} {name}: {value:.4f} in [{low}, {high}]")
        if not inside:
            wrong.append(lines[-1])
    if wrong:
        raise LeftIntervalError("\n".join(["results left their intervals:", *wrong]))
    return "\n".join(lines)


_CHECKED = (
    "test/rewards/accuracies",
    "test/rewards/margins",
    "test/answers/right",
    "diversity/self_bleu",
)


def _means(evidence: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for task, methods in evidence["tables"]["table1"]["results"].items():
        for method, settings in methods.items():
            for entry in settings.values():
                for metric in _CHECKED:
                    if metric in entry["metrics"]:
                        yield f"{task} {method} {metric}", entry["metrics"][metric]
