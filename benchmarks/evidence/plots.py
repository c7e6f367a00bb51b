"""Plots of the report, as SVG files that are the same for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.evidence.grid import DEFAULT

mpl.rcParams["svg.hashsalt"] = "evidence"


def draw_plots(evidence: Mapping[str, Any], folder: Path) -> dict[str, list[Path]]:
    """Draw every table and the training losses.

    Args:
        evidence: Content of ``evidence.json``.
        folder: Where files go.

    Returns:
        The files of each section.
    """
    titles = evidence["provenance"]["titles"]
    drawn: dict[str, list[Path]] = {}
    for name, table in evidence["tables"].items():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots(1, len(table["results"]), squeeze=False)[0]
        for place, (task, results) in zip(axes, table["results"].items(), strict=True):
            first = next(iter(table["measures"]))
            metric = evidence["provenance"]["tasks"][task].get(first, first)
            _intervals(place, results, metric, titles)
            place.set_title(f"{task}: {metric}", fontsize=9)
        drawn[name] = [_saved(figure, folder / f"{name}.svg")]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(evidence["curves"]), squeeze=False)[0]
    for place, (task, curves) in zip(axes, evidence["curves"].items(), strict=True):
        for method, quantities in curves.items():
            points = quantities["train/loss/total"]
            steps = range(1, len(points) + 1)
            place.plot(steps, [p["mean"] for p in points], label=titles[method])
            place.fill_between(
                steps, *zip(*(p["interval"] for p in points), strict=True), alpha=0.2
            )
        place.set_title(f"{task}: training loss", fontsize=9)
        place.legend(fontsize=8)
    return {**drawn, "b10": [_saved(figure, folder / "b10.svg")]}


def _intervals(axes: Any, results: Any, metric: str, titles: Mapping[str, str]) -> None:
    entries = [
        (titles[m] if s == DEFAULT else f"{titles[m]} {s}", results[m][s]["metrics"][metric])
        for m in results
        for s in results[m]
        if metric in results[m][s]["metrics"]
    ]
    labels = [label for label, _ in entries][::-1]
    means = [entry["mean"] for _, entry in entries][::-1]
    halves = [(e["interval"][1] - e["interval"][0]) / 2 for _, e in entries][::-1]
    axes.errorbar(means, range(len(means)), xerr=halves, fmt="o", capsize=3)
    axes.set_yticks(range(len(means)), labels, fontsize=8)


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path
