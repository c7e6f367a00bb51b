"""Statistics against tables and hand calculation."""

import itertools
import math
import statistics

import pytest

from benchmarks.evidence.intervals import (
    compare,
    estimate,
    holm,
    prediction_interval,
    rank_correlation,
)


def by_seed(values):
    return {str(seed): value for seed, value in enumerate(values)}


def test_an_interval_by_the_table_of_student_s_t():
    """2.776 is the 97.5 % quantile for 4 degrees of freedom."""
    values = [0.61, 0.65, 0.63, 0.70, 0.62]
    found = estimate(by_seed(values))
    half = 2.776 * statistics.stdev(values) / math.sqrt(5)
    assert found["mean"] == pytest.approx(0.642)
    assert found["interval"] == pytest.approx((0.642 - half, 0.642 + half), abs=1e-4)
    assert found["seeds"] == by_seed(values)


def test_the_interval_covers_its_mean_as_often_as_it_says():
    """All 5-subsets of a normal-like sample: a coverage near 95 % around the sample's mean."""
    values = [statistics.NormalDist().inv_cdf((i + 0.5) / 20) for i in range(20)]
    hits = [
        low <= 0 <= high
        for part in itertools.islice(itertools.combinations(values, 5), 0, None, 7)
        for low, high in [estimate(by_seed(part))["interval"]]
    ]
    assert 0.93 < sum(hits) / len(hits) < 0.995  # drawn without replacement, hence a little more


def test_paired_comparison_by_hand():
    """Differences 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), t = 3 / sqrt(2.5 / 5) = 4.243."""
    found = compare(by_seed([2, 4, 6, 8, 10]), by_seed([1, 2, 3, 4, 5]))
    assert found["difference"] == 3
    assert found["p"] == pytest.approx(0.01324, abs=1e-4)  # two-sided, 4 degrees of freedom
    half = 2.776 * math.sqrt(2.5 / 5)
    assert found["interval"] == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert found["p_wilcoxon"] == pytest.approx(2 / 2**5)  # all signs alike, exact


def test_wilcoxon_by_counting_all_signs():
    """Exact p: how many of the 2^6 sign patterns have a rank sum as extreme."""
    differences = [0.5, -1.2, 2.1, 3.3, 0.8, 4.0]
    ranks = [1, 3, 4, 5, 2, 6]
    seen = sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product([0, 1], repeat=6)
    ]
    extreme = sum(s >= seen for s in sums) / len(sums)
    found = compare(by_seed(differences), by_seed([0.0] * 6))
    assert found["p_wilcoxon"] == pytest.approx(2 * extreme)


def test_only_shared_seeds_are_compared():
    found = compare({"0": 1.0, "1": 3.0, "9": 100.0}, {"1": 1.0, "0": 0.0, "5": -100.0})
    assert found["difference"] == 1.5


def test_no_spread_is_no_error():
    same = compare(by_seed([1, 2, 3]), by_seed([1, 2, 3]))
    assert (same["difference"], same["p"], same["p_wilcoxon"]) == (0, 1, 1)
    shifted = compare(by_seed([1.0, 2.0, 3.0]), by_seed([0.0, 1.0, 2.0]))
    assert (shifted["difference"], shifted["p"]) == (1, 0)
    assert shifted["p_wilcoxon"] == 0.25


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none below a smaller one's."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_correlation_by_hand():
    """1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 0, 1, -1: 0.8."""
    assert rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)


def test_one_seed_has_no_interval():
    assert estimate({"0": 1.0}) == {
        "mean": 1.0, "interval": [-math.inf, math.inf], "seeds": {"0": 1.0}
    }  # fmt: skip


def test_prediction_interval_by_hand():
    """t(3, 99.95 %) = 12.924, s = 1.291, sqrt(1/4 + 1/2)."""
    low, high = prediction_interval([1, 2, 3, 4], 2, 0.999)
    assert (low + high) / 2 == pytest.approx(2.5)
    assert (high - low) / 2 == pytest.approx(12.924 * 1.29099 * math.sqrt(0.75), rel=1e-3)
