"""Means with intervals, paired tests, and the correction for asking many questions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        interval: Ends of its 95 % interval, from Student's t with one degree of freedom less than
            there are seeds.
        seeds: The values that went into it, by seed.
    """

    mean: float
    interval: tuple[float, float]
    seeds: Mapping[str, float]

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Comparison:
    """An entry minus another one on the same seeds.

    Attributes:
        difference: Mean of the differences.
        interval: Ends of its 95 % interval.
        p: Two-sided p of the paired t-test.
        p_wilcoxon: Two-sided p of Wilcoxon's signed-rank test, exact. With 5 seeds it cannot fall
            below 0.0625.
        p_holm: ``p`` after Holm's correction over the table.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    p_wilcoxon: float
    p_holm: float


def estimate(values: Mapping[str, float]) -> Estimate:
    """Mean and 95 % interval over seeds.

    Args:
        values: Value by seed; one alone has no interval, which is then infinite.

    Example:
        >>> one = estimate({"0": 1.0, "1": 2.0, "2": 3.0})
        >>> one.mean, round(one.half_width, 3)
        (2.0, 2.484)
    """
    numbers = list(values.values())
    return Estimate(statistics.fmean(numbers), _interval(numbers), dict(values))


def compare(values: Mapping[str, float], others: Mapping[str, float]) -> Comparison:
    """Paired tests on the seeds that both have, before any correction.

    Args:
        values: Value by seed.
        others: Value by seed.

    Returns:
        The comparison, with ``p_holm`` equal to ``p``.
    """
    shared = [seed for seed in values if seed in others]
    differences = [values[seed] - others[seed] for seed in shared]
    if len({*differences}) == 1:  # no spread: the tests are not defined
        p = 1.0 if differences[0] == 0 else 0.0
        wilcoxon = 1.0 if p else min(1.0, 2 * 0.5 ** len(shared))
    else:
        p = float(stats.ttest_rel([values[s] for s in shared], [others[s] for s in shared]).pvalue)
        wilcoxon = float(stats.wilcoxon(differences).pvalue)  # exact for as few as these
    return Comparison(statistics.fmean(differences), _interval(differences), p, wilcoxon, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    The i-th smallest of m is multiplied by ``m - i + 1``; none falls below a smaller one's.

    Args:
        p_values: The p-values of one family of tests.

    Returns:
        Corrected p-values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, or NaN where either has no order."""
    if len({*first}) < 2 or len({*second}) < 2:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def prediction_interval(values: Sequence[float], size: int, level: float) -> tuple[float, float]:
    """Where the mean of ``size`` further values lies.

    ``mean +- t s sqrt(1/n + 1/size)``, for values of one normal distribution.

    Args:
        values: At least two values.
        size: How many the later mean is of.
        level: Probability, such as 0.999.
    """
    count = len(values)
    spread = statistics.stdev(values) * math.sqrt(1 / count + 1 / size)
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * spread
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


def _interval(numbers: Sequence[float]) -> tuple[float, float]:
    if len(numbers) < 2:
        return -math.inf, math.inf
    error = statistics.stdev(numbers) / math.sqrt(len(numbers))
    reach = float(stats.t.ppf(0.975, len(numbers) - 1)) * error
    mean = statistics.fmean(numbers)
    return mean - reach, mean + reach
