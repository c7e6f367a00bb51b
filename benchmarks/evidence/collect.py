"""From the results of cells to ``evidence.json``: estimates, comparisons and curves."""

from __future__ import annotations

import itertools
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.cells import Cell, Entry, cells_of, source_hash
from benchmarks.evidence.grid import DEFAULT, Grid
from benchmarks.evidence.intervals import Comparison, compare, estimate, holm
from benchmarks.evidence.runner import result_of
from lit_tidpo.errors import InputError

BASELINE = "dpo"
WINDOWS = 12  # points of Table B10

BySeed = dict[str, dict[str, float]]  # metric, seed


def collect(grid: Grid, folder: Path) -> dict[str, Any]:
    """Summarise the results of a grid.

    Args:
        grid: The grid.
        folder: Where data and results are kept.

    Returns:
        ``tables`` (table, ``results``, task, method, setting: mean, interval and seeds of the
        task's headline, the same of all ``metrics``, and comparisons with plain DPO and what the
        table is ``against``), ``curves`` and ``provenance``.

    Raises:
        InputError: If results are missing.
    """
    cells, source = cells_of(grid, folder), source_hash()
    results = {}
    for cell in {cell.file_name: cell for cell in cells.values()}.values():
        result = result_of(cell, source, folder)
        if result is not None:
            results[cell.file_name] = result
    missing = {cell.file_name: cell for cell in cells.values() if cell.file_name not in results}
    if missing:
        first = next(iter(missing.values()))
        raise InputError(
            f"{len(missing)} cells have no result of this code, for example {first.name!r} seed "
            f"{first.seed}: run `python -m benchmarks.evidence run`"
        )
    metrics = _metrics(cells, results)
    _add_relative_cost(metrics)
    return {
        "provenance": _provenance(grid, results, source),
        "tables": {
            name: {
                "title": table.title,
                "measures": table.measures,
                "results": {
                    task: _table(grid, metrics, task, name) for task in grid.tasks_of(table)
                },
            }
            for name, table in grid.tables.items()
        },
        "curves": {task: _curves(grid, cells, results, task) for task in grid.tasks},
    }


def _metrics(
    cells: Mapping[tuple[Entry, int], Cell], results: Mapping[str, Any]
) -> dict[Entry, BySeed]:
    """Metrics of each entry, by seed."""
    found: dict[Entry, BySeed] = {}
    for (entry, seed), cell in cells.items():
        for name, value in results[cell.file_name]["metrics"].items():
            found.setdefault(entry, {}).setdefault(name, {})[str(seed)] = value
    return found


def _baseline(metrics: Mapping[Entry, BySeed], entry: Entry) -> Entry:
    """Plain DPO in the same table and setting, or else that of the first table."""
    task, table, _, setting = entry
    own = (task, table, BASELINE, setting)
    if own in metrics:
        return own
    return next(e for e in metrics if e[0] == task and e[2:] == (BASELINE, DEFAULT))


def _add_relative_cost(metrics: dict[Entry, BySeed]) -> None:
    """Processor time of the training steps, in units of plain DPO's with the same seed."""
    for entry, values in metrics.items():
        if "cost/cpu_seconds" in values:
            plain = metrics[_baseline(metrics, entry)]["cost/cpu_seconds"]
            values["cost/relative"] = {
                seed: seconds / plain[seed] for seed, seconds in values["cost/cpu_seconds"].items()
            }


def _table(grid: Grid, metrics: Mapping[Entry, BySeed], task: str, name: str) -> dict[str, Any]:
    table = grid.tables[name]
    entries = [(task, name, m, s) for m in table.methods for s in table.settings]
    results: dict[str, Any] = {}
    for entry in entries:
        values = metrics[entry]
        shown = {metric: asdict(estimate(seeds)) for metric, seeds in sorted(values.items())}
        headline = shown[grid.tasks[task].headline]
        results.setdefault(entry[2], {})[entry[3]] = {**headline, "metrics": shown}
    for other in ("dpo", table.against):
        if other:
            for metric in (grid.metric(task, measure) for measure in table.measures):
                _add_comparisons(results, metrics, entries, metric, other)
    return results


def _add_comparisons(
    results: dict[str, Any],
    metrics: Mapping[Entry, BySeed],
    entries: list[Entry],
    metric: str,
    other: str,
) -> None:
    """Compare all entries of a table with one, corrected together."""
    found: dict[Entry, Comparison] = {}
    for entry in entries:
        if other == BASELINE:
            base = _baseline(metrics, entry)
        else:
            method, _, setting = other.partition("/")
            base = (entry[0], entry[1], method, setting or DEFAULT)
        if entry[2:] != base[2:] and metric in metrics[entry]:
            found[entry] = compare(metrics[entry][metric], metrics[base][metric])
    corrected = holm([comparison.p for comparison in found.values()])
    for (entry, comparison), p in zip(found.items(), corrected, strict=True):
        place = results[entry[2]][entry[3]]["metrics"][metric]
        place.setdefault("against", {})[other] = asdict(replace(comparison, p_holm=p))


def _curves(
    grid: Grid,
    cells: Mapping[tuple[Entry, int], Cell],
    results: Mapping[str, Any],
    task: str,
) -> dict[str, Any]:
    """Mean training curves over seeds, in as many windows as Table B10 has points."""
    found: dict[str, Any] = {}
    for method in grid.curves:
        own = [
            results[cells[entry, seed].file_name]["curves"]
            for seed in grid.seeds
            for entry in list(dict.fromkeys(e for e, _ in cells))
            if entry[0] == task and entry[2:] == (method, DEFAULT) and entry[1] == "table1"
        ]
        found[method] = {
            name: [
                asdict(estimate({str(s): v[k] for s, v in zip(grid.seeds, windows, strict=True)}))
                for k in range(WINDOWS)
            ]
            for name in own[0]
            for windows in [[windowed(run[name]) for run in own]]
        }
    return found


def windowed(values: list[float]) -> list[float]:
    """Means of ``WINDOWS`` parts of about the same length."""
    ends = [round(len(values) * k / WINDOWS) for k in range(WINDOWS + 1)]
    # With fewer values than parts, a part without one takes the value before it.
    parts = [values[a:b] or values[:b][-1:] or values[:1] for a, b in itertools.pairwise(ends)]
    return [statistics.fmean(part) for part in parts]


def _provenance(grid: Grid, results: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {
        "source_hash": source,
        "seeds": list(grid.seeds),
        "cells": len(results),
        "cpu_seconds": round(sum(result["cpu_seconds"] for result in results.values())),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "tasks": {
            name: {"title": task.title, "headline": task.headline, "selection": task.selection}
            for name, task in grid.tasks.items()
        },
        "titles": {name: method.title for name, method in grid.methods.items()},
    }
