"""How well scores rank the tokens of a defect, with intervals."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def ranks(values: Tensor) -> Tensor:
    """Rank of each value from 1; equal values share the mean of their ranks. fp64, 1-D."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def auroc(scores: Tensor, marked: Tensor) -> float:
    """Area under the ROC curve: the chance that a marked token scores higher than another one.

    Args:
        scores: 1-D; ties count one half.
        marked: Tokens of the defect, bool.
    """
    # Anything outside 0 to 1 would be put through a sigmoid, which makes ties of large scores.
    unit = ranks(scores) / len(scores)
    return float(binary_auroc(unit, marked.long(), validate_args=False))


def precision(scores: Tensor, marked: Tensor, k: int) -> float:
    """Share of the defect's tokens among the ``k`` highest scores; ties share the last places.

    Args:
        scores: 1-D.
        marked: Tokens of the defect, bool.
        k: At least 1; no more than there are tokens count.
    """
    k = min(k, len(scores))
    least = scores.topk(k).values[-1]
    above, tied = scores > least, scores == least
    places = k - int(above.sum())
    hits = marked[above].sum() + places * marked[tied].double().mean()
    return float(hits / k)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation; 0 where one of them has all values alike."""
    stacked = torch.stack([ranks(first), ranks(second)])
    if bool((stacked == stacked[:, :1]).all(-1).any()):
        return 0.0
    return float(torch.corrcoef(stacked)[0, 1])


def clustered(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """Mean over rows, with a bootstrap interval that draws whole clusters.

    Rows of one module share its style and often its functions: they are not independent.

    Args:
        values: One number for each row.
        clusters: The cluster of each row.
        seed: Seed of the draws.
    """
    members: dict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        members[cluster].append(value)
    totals = torch.tensor(
        [[sum(group), len(group)] for group in members.values()], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(totals), (DRAWS, len(totals)), generator=generator)
    sums = totals[drawn].sum(1)
    low, high = (sums[:, 0] / sums[:, 1]).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return Interval(statistics.fmean(values), low, high)
