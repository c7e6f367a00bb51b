"""Areas, precision, rank correlation and the bootstrap, by hand, naive loops and torchmetrics."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from benchmarks.evidence.intervals import auroc, clustered, precision, rank_correlation


def drawn(seed, length=30, values=None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(length, generator=generator)
    if values is not None:
        scores = (scores * values).round()
    return scores, torch.rand(length, generator=generator) < 0.3


@pytest.mark.parametrize("values", [None, 2])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_area_is_the_share_of_pairs_in_the_right_order(values, unit):
    """Ties count one half, whatever the unit of the scores."""
    scores, marked = drawn(0, values=values)
    wins = [
        (a > b) + 0.5 * (a == b)
        for a, b in itertools.product(scores[marked].tolist(), scores[~marked].tolist())
    ]
    assert auroc(scores * unit, marked) == pytest.approx(sum(wins) / len(wins), abs=1e-6)


def test_area_by_hand():
    marked = torch.tensor([False, True, False])
    assert auroc(torch.tensor([5.0, 9.0, 7.0]), marked) == 1.0
    assert auroc(torch.tensor([5.0, 6.0, 7.0]), marked) == 0.5
    assert auroc(torch.ones(3), marked) == 0.5


def test_precision_by_hand():
    marked = torch.tensor([True, False, True, False])
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert [precision(scores, marked, k) for k in (1, 2, 3, 9)] == [1.0, 0.5, 2 / 3, 0.5]


def test_precision_of_ties_is_that_of_random_order():
    """Among the tied ones each has the same chance of a place."""
    marked = torch.tensor([True, False, False, True, False])
    scores = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    orders = [[0, *order] for order in itertools.permutations([1, 2, 3])]
    expected = sum(sum(marked[place].item() for place in order[:2]) / 2 for order in orders) / 6
    assert precision(scores, marked, 2) == pytest.approx(expected)


@pytest.mark.parametrize("values", [None, 3])
def test_rank_correlation_is_torchmetrics(values):
    first, second = drawn(1, values=values)[0], drawn(2, values=values)[0]
    expected = spearman_corrcoef(first, second).item()
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(first, first.exp()) == pytest.approx(1.0)


def test_constant_values_have_no_rank_correlation():
    assert rank_correlation(torch.ones(4), torch.arange(4)) == 0.0


def test_the_bootstrap_draws_whole_clusters():
    """Equal values inside clusters: the interval is that of the clusters' means, and wider."""
    generator = random.Random(0)
    means = [generator.gauss(0, 1) for _ in range(40)]
    values = [mean for mean in means for _ in range(25)]
    together = clustered(values, [str(place // 25) for place in range(1000)])
    apart = clustered(values, [str(place) for place in range(1000)])
    error = torch.tensor(means).std().item() / 40**0.5
    assert together["interval"][1] - together["interval"][0] == pytest.approx(
        2 * 1.96 * error, rel=0.12
    )
    assert apart["interval"][1] - apart["interval"][0] == pytest.approx(
        2 * 1.96 * error / 5, rel=0.12
    )
    assert together["mean"] == apart["mean"] == pytest.approx(sum(means) / 40)
    assert clustered(values, ["a"] * 1000)["interval"][0] == pytest.approx(together["mean"])
