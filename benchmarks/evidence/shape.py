"""Whether the shape of the paper's figures holds here, as a sentence made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence.grid import DEFAULT
from benchmarks.evidence.intervals import rank_correlation

Figures = Mapping[str, Mapping[str, float]]  # method, setting

LEVEL = 0.05
_ROWS_TO_RANK = 4


def paper_figures() -> dict[str, Any]:
    """The paper's figures: table, measure, method, setting."""
    text = Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8")
    figures: dict[str, Any] = yaml.safe_load(text)
    return figures


def shape(results: Figures | Any, metric: str, paper: Figures, titles: Mapping[str, str]) -> str:
    """Say whether differences that the paper reports are found here.

    Args:
        results: A task's results of a table: method, setting.
        metric: The measured metric.
        paper: The paper's figures beside it; empty where it has none.
        titles: Names of methods for readers.

    Returns:
        Sentences.
    """
    sentences = []
    for other in _references(results, metric):
        sentences.append(_differences(results, metric, paper, other, titles))
    sentences += [_course(results, metric, paper, method, titles) for method in results]
    sentences.append(_ranks(results, metric, paper))
    return " ".join(filter(None, sentences)) or "The paper has no figures to compare with."


def _references(results: Any, metric: str) -> list[str]:
    """What entries were compared with."""
    against = [
        name
        for settings in results.values()
        for entry in settings.values()
        for name in entry["metrics"].get(metric, {}).get("against", {})
    ]
    return list(dict.fromkeys(against))


def _differences(
    results: Any, metric: str, paper: Figures, other: str, titles: Mapping[str, str]
) -> str:
    """Compare the signs of differences from one entry with the paper's."""
    method, _, place = other.partition("/")
    same, opposite, unclear = [], [], []
    for name, settings in results.items():
        for setting, entry in settings.items():
            here = entry["metrics"].get(metric, {}).get("against", {}).get(other)
            base = paper.get(method, {}).get(place or _own(paper, method, setting))
            there = paper.get(name, {}).get(setting)
            if here is None or base is None or there is None or there == base:
                continue
            label = titles[name] if setting == DEFAULT else f"{titles[name]} at {setting}"
            if here["p_holm"] >= LEVEL:
                unclear.append(label)
            elif (here["difference"] > 0) == (there > base):
                same.append(label)
            else:
                opposite.append(label)
    count = len(same) + len(opposite) + len(unclear)
    if not count:
        return ""
    name = titles[method] + (f" at {place}" if place else "")
    parts = [
        f"{len(same)} found with its sign{_listed(same)}",
        f"{len(opposite)} with the opposite sign{_listed(opposite)}",
        f"{len(unclear)} not told from 0{_listed(unclear)}",
    ]
    return (
        f"Differences from {name} that the paper reports: {count}; here {', '.join(parts)}. "
        f"{_verdict(len(same), len(opposite), count)}"
    )


def _own(paper: Figures, method: str, setting: str) -> str:
    return setting if setting in paper.get(method, {}) else DEFAULT


def _listed(labels: list[str]) -> str:
    return f" ({', '.join(labels)})" if labels else ""


def _verdict(same: int, opposite: int, count: int) -> str:
    if same == count:
        return "The paper's shape holds here."
    if opposite > same:
        return "The paper's shape is contradicted here."
    if same > 0:
        return "The paper's shape holds here in part."
    return "The paper's shape is not shown here."


def _course(
    results: Any, metric: str, paper: Figures, method: str, titles: Mapping[str, str]
) -> str:
    """The change from the first to the last setting."""
    settings = list(results[method])
    if len(settings) < 2:
        return ""
    first, last = settings[0], settings[-1]
    here = [results[method][s]["metrics"][metric]["mean"] for s in (first, last)]
    text = f"From {first} to {last}, {titles[method]} goes from {here[0]:.3f} to {here[1]:.3f}"
    there = paper.get(method, {})
    if first in there and last in there:
        text += f" (paper: {there[first]:.3f} to {there[last]:.3f})"
    return f"{text}."


def _ranks(results: Any, metric: str, paper: Figures) -> str:
    pairs = [
        (entry["metrics"][metric]["mean"], paper[name][setting])
        for name, settings in results.items()
        for setting, entry in settings.items()
        if metric in entry["metrics"] and setting in paper.get(name, {})
    ]
    if len(pairs) < _ROWS_TO_RANK:
        return ""
    value = rank_correlation(*zip(*pairs, strict=True))
    return f"Rank correlation with the paper's figures: {value:.2f} over {len(pairs)} entries."


def curve_shape(curves: Any, paper: Any, titles: Mapping[str, str]) -> str:
    """Compare the training losses of two methods with Table B10.

    Args:
        curves: A task's curves: method, quantity.
        paper: Loss of each method at each point.
        titles: Names of methods for readers.
    """
    first, second = list(curves)[:2]
    ours = [[p["mean"] for p in curves[m]["train/loss/total"]] for m in (first, second)]
    below = sum(b < a for a, b in zip(*ours, strict=True))
    there = sum(b < a for a, b in zip(paper[first], paper[second], strict=True))
    verdict = "holds" if below == len(ours[0]) else "does not hold"
    return (
        f"{titles[second]}'s training loss is below {titles[first]}'s in {below} of {len(ours[0])} "
        f"windows (paper: {there} of {len(paper[first])}); its shape {verdict} here. "
        f"{titles[first]} ends at {ours[0][-1]:.3f}, {titles[second]} at {ours[1][-1]:.3f} "
        f"(paper: {paper[first][-1]:.3f} and {paper[second][-1]:.3f}). The total of "
        f"{titles[second]} contains the triplet loss, so that the two totals are not one quantity."
    )
