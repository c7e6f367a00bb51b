"""Means with intervals, paired tests, and how well scores rank what is marked."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

DRAWS = 1000
Figure = dict[str, Any]  # a mean and the ends of its 95 % interval, as JSON holds them


def estimate(values: Mapping[str, float]) -> Figure:
    """Mean of values by seed, with an interval by Student's t; of one seed it is infinite."""
    numbers = list(values.values())
    interval = _interval(numbers, 1 / len(numbers), 0.95)
    return {"mean": statistics.fmean(numbers), "interval": interval, "seeds": dict(values)}


def prediction_interval(values: Sequence[float], size: int, level: float) -> list[float]:
    """Where the mean of ``size`` further values lies: ``mean ± t s sqrt(1/n + 1/size)``."""
    return _interval(values, 1 / len(values) + 1 / size, level)


def _interval(values: Sequence[float], variance: float, level: float) -> list[float]:
    """The mean, give or take quantiles of t; ``variance`` is in units of that of the values."""
    if len(values) < 2:
        return [-math.inf, math.inf]
    scale = statistics.stdev(values) * math.sqrt(variance)
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * scale
    mean = statistics.fmean(values)
    return [mean - reach, mean + reach]


def compare(values: Mapping[str, float], others: Mapping[str, float]) -> Figure:
    """Paired tests of values by seed, on the seeds that both have.

    Returns:
        ``difference`` and its ``interval``, two-sided ``p`` of the t-test and ``p_wilcoxon`` of
        Wilcoxon's exact one, which cannot fall below 0.0625 with 5 seeds.
    """
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    if len({*differences}) == 1:  # no spread: the tests are not defined
        p = float(differences[0] == 0)
        wilcoxon = p or min(1.0, 2 * 0.5 ** len(differences))
    else:
        p = float(stats.ttest_1samp(differences, 0).pvalue)
        wilcoxon = float(stats.wilcoxon(differences).pvalue)
    found = estimate(dict(enumerate(differences)))
    return {
        "difference": found["mean"],
        "interval": found["interval"],
        "p": p,
        "p_wilcoxon": wilcoxon,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the i-th smallest of m times ``m - i + 1``, none below a smaller one's."""
    order, corrected = np.argsort(p_values), np.empty(len(p_values))
    factors = np.arange(len(p_values), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(np.take(p_values, order) * factors, 1))
    return [float(p) for p in corrected]


def clustered(values: Sequence[float], clusters: Sequence[str]) -> Figure:
    """Mean over rows, with a bootstrap interval that draws whole clusters.

    Rows of one module share its style and often its functions: they are not independent.
    """
    members: dict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        members[cluster].append(value)
    totals = torch.tensor(
        [[sum(group), len(group)] for group in members.values()], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(totals), (DRAWS, len(totals)), generator=generator)
    sums = totals[drawn].sum(1)
    ends = (sums[:, 0] / sums[:, 1]).quantile(torch.tensor([0.025, 0.975]).double())
    return {"mean": statistics.fmean(values), "interval": ends.tolist()}


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's; 0 where one of them has all values alike."""
    if min(len(np.unique(first)), len(np.unique(second))) < 2:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def auroc(scores: ArrayLike, marked: ArrayLike) -> float:
    """Chance that a marked value scores higher than another one; ties count one half."""
    ranks, marks = stats.rankdata(scores), np.asarray(marked)
    hits, others = marks.sum(), (~marks).sum()
    return float((ranks[marks].sum() - hits * (hits + 1) / 2) / (hits * others))


def precision(scores: ArrayLike, marked: ArrayLike, k: int) -> float:
    """Share of marked values among the ``k`` highest scores; ties share the last places."""
    values, marks = np.asarray(scores), np.asarray(marked)
    k = min(k, len(values))
    least = np.sort(values)[-k]
    above, tied = values > least, values == least
    hits = marks[above].sum() + (k - above.sum()) * marks[tied].mean()
    return float(hits / k)
