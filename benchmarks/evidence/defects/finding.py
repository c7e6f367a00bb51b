"""How well each estimator finds the defects, in one table."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.defects.measures import auroc, clustered, precision
from benchmarks.evidence.defects.rows import DefectRow

# 97.5 % quantile of Student's t for 1 to 9 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def row_aurocs(scores: Sequence[Tensor], rows: Sequence[DefectRow]) -> list[float]:
    """Area under the ROC curve of each row."""
    return [auroc(values, row.marked) for values, row in zip(scores, rows, strict=True)]


def found(
    runs: Sequence[Sequence[Tensor]], rows: Sequence[DefectRow], position: Sequence[float]
) -> dict[str, Any]:
    """How well scores find the defects.

    Args:
        runs: Scores of each seed.
        rows: The rows.
        position: Area of the best baseline by position, for each row.

    Returns:
        ``auroc``, ``precision_at_k`` (k is the number of the defect's tokens) and
        ``precision_at_5``: means over rows, seeds averaged first, with intervals over modules;
        ``gain_over_position``: the paired difference in area; ``auroc_pooled``: over the tokens of
        all rows; ``auroc_of_seeds``: mean and half-width of the interval over seeds;
        ``auroc_by_defect``.
    """
    modules = [row.module for row in rows]
    areas = [row_aurocs(scores, rows) for scores in runs]
    area = _means(areas)
    sizes = [int(row.marked.sum()) for row in rows]
    precise = {
        f"precision_at_{name}": _means(
            [
                [
                    precision(values, row.marked, k)
                    for values, row, k in zip(scores, rows, ks, strict=True)
                ]
                for scores in runs
            ]
        )
        for name, ks in {"k": sizes, "5": [5] * len(rows)}.items()
    }
    kinds: dict[str, list[float]] = defaultdict(list)
    for row, value in zip(rows, area, strict=True):
        kinds[row.fields["defect"]].append(value)
    marked = torch.cat([row.marked for row in rows])
    result: dict[str, Any] = {"auroc": asdict(clustered(area, modules))}
    result |= {name: asdict(clustered(values, modules)) for name, values in precise.items()}
    result["gain_over_position"] = gain(area, position, modules)
    result["auroc_pooled"] = statistics.fmean(
        auroc(torch.cat(list(scores)), marked) for scores in runs
    )
    result["auroc_of_seeds"] = over_seeds([statistics.fmean(values) for values in areas])
    result["auroc_by_defect"] = {
        kind: statistics.fmean(values) for kind, values in sorted(kinds.items())
    }
    return result


def gain(
    areas: Sequence[float], others: Sequence[float], modules: Sequence[str]
) -> dict[str, float]:
    """Paired difference in area, with its interval over modules."""
    differences = [ours - theirs for ours, theirs in zip(areas, others, strict=True)]
    return asdict(clustered(differences, modules))


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean of some seeds and half the width of its 95 % interval by Student's t."""
    half = None
    if len(values) > 1:
        quantile = _STUDENT[min(len(values) - 2, len(_STUDENT) - 1)]
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "half_width": half, "seeds": len(values)}


def _means(runs: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*runs, strict=True)]
