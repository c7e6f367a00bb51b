"""From the results of cells to ``evidence.json``: estimates, comparisons and curves."""

from __future__ import annotations

import itertools
import json
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.grid import CODE, DEFAULT, Entry, Grid, cells_of
from benchmarks.evidence.intervals import compare, estimate, holm
from benchmarks.evidence.runner import RUNS, Unit, results_of, source_hash

BASELINE = "dpo"
WINDOWS = 12  # points of Table B10

Metrics = dict[Entry, dict[str, dict[str, float]]]  # metric, seed


def collect(grid: Grid, folder: Path = RUNS, partial: bool = False) -> dict[str, Any]:
    """Summarise the results of a grid that are kept in a folder; a missing one is a UnitError.

    Of a ``partial`` one entries count that have all seeds and plain DPO beside them.

    Returns:
        ``tables`` (table, ``results``, task, method, setting: mean, interval and seeds of the
        task's headline, the same of all ``metrics``, and comparisons with plain DPO and what the
        table is ``against``), ``curves`` and ``provenance``.
    """
    cells = cells_of(grid, folder)
    if partial:
        cells = _complete(grid, cells, folder)
    found = dict(zip(cells, results_of([*cells.values()], folder), strict=True))
    seconds = {cells[place].key: kept["cpu_seconds"] for place, kept in found.items()}
    metrics: Metrics = {}
    for (entry, seed), kept in found.items():
        for name, value in kept["result"]["metrics"].items():
            metrics.setdefault(entry, {}).setdefault(name, {})[str(seed)] = value
    add_relative_cost(metrics)
    tables: dict[str, Any] = {
        name: {"title": table.title, "measures": table.measures, "results": {}}
        for name, table in grid.tables.items()
    }
    for task, name in dict.fromkeys(entry[:2] for entry in metrics):
        tables[name]["results"][task] = table_results(grid, metrics, task, name)
    curves: dict[str, Any] = {task: {} for task in grid.tasks if grid.curves}
    for task, method in itertools.product(grid.tasks, grid.curves):
        entry = (task, next(iter(grid.tables)), method, DEFAULT)
        losses = {str(s): windowed(found[entry, s]["result"]["losses"]) for s in grid.seeds}
        points = [{seed: values[k] for seed, values in losses.items()} for k in range(WINDOWS)]
        curves[task][method] = {"train/loss/total": [estimate(point) for point in points]}
    provenance = {
        "source_hash": source_hash(CODE),
        "seeds": list(grid.seeds),
        "cells": len(seconds),
        "cpu_seconds": round(sum(seconds.values())),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "tasks": {
            name: {"title": task.title, "headline": task.headline, "selection": task.selection}
            for name, task in grid.tasks.items()
        },
        "titles": {name: method.title for name, method in grid.methods.items()},
    }
    return {"provenance": provenance, "tables": tables, "curves": curves}


def _complete(
    grid: Grid, cells: dict[tuple[Entry, int], Unit], folder: Path
) -> dict[tuple[Entry, int], Unit]:
    """The cells of entries that have a result of every seed, on tasks where plain DPO has."""
    missing = {entry for (entry, _), unit in cells.items() if unit.result(folder) is None}
    compared = {e[0] for e in grid.entries() if e[2:] == (BASELINE, DEFAULT) and e not in missing}
    return {
        place: unit
        for place, unit in cells.items()
        if place[0] not in missing and place[0][0] in compared
    }


def add_relative_cost(metrics: Metrics) -> None:
    """Processor time of the training steps, in units of plain DPO's with the same seed."""
    for entry, values in metrics.items():
        if "cost/cpu_seconds" in values:
            plain = metrics[_baseline(metrics, entry)]["cost/cpu_seconds"]
            seconds = values["cost/cpu_seconds"].items()
            values["cost/relative"] = {seed: value / plain[seed] for seed, value in seconds}


def _baseline(metrics: Metrics, entry: Entry) -> Entry:
    """Plain DPO in the same table and setting, or else that of the first table."""
    task, table, _, setting = entry
    own = (task, table, BASELINE, setting)
    if own in metrics:
        return own
    return next(e for e in metrics if (e[0], *e[2:]) == (task, BASELINE, DEFAULT))


def table_results(grid: Grid, metrics: Metrics, task: str, name: str) -> dict[str, Any]:
    """Estimates of a table's methods and settings on a task, and their comparisons."""
    table, about, results = grid.tables[name], grid.tasks[task], {}
    entries = [entry for entry in metrics if entry[:2] == (task, name)]
    for entry in entries:
        shown = {metric: estimate(seeds) for metric, seeds in sorted(metrics[entry].items())}
        headline = {**shown[about.headline], "metrics": shown}
        results.setdefault(entry[2], {})[entry[3]] = headline
    for other, measure in itertools.product((BASELINE, table.against), table.measures):
        metric = getattr(about, measure, measure)  # the task's headline or selection
        compared = {}
        for entry in entries if other else ():
            method, _, setting = other.partition("/")
            base = (task, name, method, setting or DEFAULT)
            base = _baseline(metrics, entry) if other == BASELINE else base
            known = base in metrics and metric in metrics[entry]  # not all of a partial grid is
            if entry[2:] != base[2:] and known:
                compared[entry] = compare(metrics[entry][metric], metrics[base][metric])
        corrected = holm([found["p"] for found in compared.values()])
        for entry, p in zip(compared, corrected, strict=True):
            shown = results[entry[2]][entry[3]]["metrics"][metric]
            shown.setdefault("against", {})[other] = {**compared[entry], "p_holm": p}
    return results


def windowed(values: list[float]) -> list[float]:
    """Means of ``WINDOWS`` parts of about the same length."""
    ends = [round(len(values) * k / WINDOWS) for k in range(WINDOWS + 1)]
    # With fewer values than parts, a part without one takes the value before it.
    parts = [values[a:b] or values[:b][-1:] or values[:1] for a, b in itertools.pairwise(ends)]
    return [statistics.fmean(part) for part in parts]


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write results with 6 significant digits: more than seeds leave certain."""
    text = json.dumps(content, allow_nan=False)
    rounded = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}"))
    path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
