"""From raw scores to token weights."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from lit_tidpo.functional.importance import (
    clip_weights,
    gaussian_prior,
    hybrid_weights,
    normalize_scores,
    relative_to_neighbours,
    scale_weights,
    softmax_prior,
    temper_scores,
)

RAGGED = torch.tensor(
    [
        [False, True, True, True, False, False],
        [False, False, False, True, True, True],
        [False, False, True, False, False, False],
        [True, True, True, True, True, True],
    ]
)


def ragged_scores(seed=0):
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(length, **options):
    return gaussian_prior(torch.ones(1, length, dtype=torch.bool), **options)[0].tolist()


def test_prior_by_hand_for_one_two_and_five_tokens():
    """Eq. 7: for five tokens mu = 2 and sigma = 1.25, so exp(-1.28), exp(-0.32), 1, ..."""
    assert prior(1) == [1.0]
    assert prior(2) == pytest.approx([0.5, 0.5])
    assert prior(5, normalized=False) == pytest.approx(
        [0.278037300, 0.726149037, 1.0, 0.726149037, 0.278037300]
    )
    total = 3.008372674
    assert prior(5) == pytest.approx(
        [share / total for share in (0.2780373, 0.726149037, 1.0, 0.726149037, 0.2780373)]
    )


def test_raw_prior_by_hand_for_one_and_two_tokens():
    """For two tokens mu = 0.5 and sigma = 0.5: exp(-1/2) both; no position is at the peak."""
    assert prior(1, normalized=False) == [1.0]
    assert prior(2, normalized=False) == pytest.approx([0.606530660] * 2)


def test_prior_of_the_authors_code_by_hand():
    """sigma = T / 8 = 0.625 for five tokens: exp(-5.12), exp(-1.28), 1, ..."""
    expected = [0.005976023, 0.278037300, 1.0, 0.278037300, 0.005976023]
    assert prior(5, sigma_divisor=8.0, normalized=False) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_prior_counts_masked_tokens_alone(normalized):
    """W1, W2: a response has the same prior wherever it stands, and none stands off it."""
    result = gaussian_prior(RAGGED, normalized=normalized)
    for row in range(4):
        length = int(RAGGED[row].sum())
        ours = result[row][RAGGED[row]].tolist()
        assert ours == pytest.approx(prior(length, normalized=normalized))
    assert bool((result[~RAGGED] == 0).all())


def test_normalised_scores_are_shares_of_the_masked_sum():
    scores = ragged_scores()
    result = normalize_scores(scores, RAGGED)
    for row in range(4):
        kept = [scores[row, t].item() for t in range(6) if RAGGED[row, t]]
        assert result[row][RAGGED[row]].tolist() == pytest.approx([s / sum(kept) for s in kept])
    assert bool((result[~RAGGED] == 0).all())


@pytest.mark.parametrize("planted", [math.nan, math.inf, -5.0, 1e30])
@pytest.mark.parametrize(
    "transform",
    [
        normalize_scores,
        softmax_prior,
        scale_weights,
        functools.partial(temper_scores, power=0.5),
        functools.partial(relative_to_neighbours, radius=1),
        functools.partial(clip_weights, limit=1.1),
    ],
)
def test_scores_off_the_mask_do_not_count(transform, planted):
    """W1: the prompt's scores, whatever they are, are ignored."""
    scores = ragged_scores()
    expected = transform(scores, RAGGED)
    assert torch.equal(transform(scores.masked_fill(~RAGGED, planted), RAGGED), expected)


def test_scores_that_are_all_zero_give_even_shares():
    scores = torch.zeros(4, 6)
    result = normalize_scores(scores, RAGGED)
    assert result[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert result[2].tolist() == [0, 0, 1, 0, 0, 0]
    assert scale_weights(scores, RAGGED)[3].tolist() == pytest.approx([1.0] * 6)
    assert torch.equal(scale_weights(scores, RAGGED, "max"), scores)


def test_a_row_without_tokens_is_zero_and_not_nan():
    """L8: sums and lengths of nothing are clamped."""
    nothing, scores = torch.zeros(1, 4, dtype=torch.bool), torch.ones(1, 4)
    zeros = [[0.0] * 4]
    assert normalize_scores(scores, nothing).tolist() == zeros
    assert gaussian_prior(nothing).tolist() == zeros
    assert softmax_prior(scores, nothing).tolist() == zeros
    for scale in ("mean", "sum", "max"):
        assert scale_weights(scores, nothing, scale).tolist() == zeros


def test_softmax_prior_equals_a_naive_loop():
    """Scores over their mean, then a softmax over the masked tokens."""
    scores = ragged_scores()
    result = softmax_prior(scores, RAGGED)
    for row in range(4):
        kept = [scores[row, t].item() for t in range(6) if RAGGED[row, t]]
        powers = [math.exp(s / (sum(kept) / len(kept))) for s in kept]
        ours = result[row][RAGGED[row]].tolist()
        assert ours == pytest.approx([power / sum(powers) for power in powers])
    assert bool((result[~RAGGED] == 0).all())


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_relative_scores_equal_a_naive_loop(radius):
    """Over the mean of the masked scores at most `radius` places away."""
    scores = ragged_scores()
    result = relative_to_neighbours(scores, RAGGED, radius)
    for row in range(4):
        for t in range(6):
            near = range(max(0, t - radius), min(6, t + radius + 1))
            kept = [scores[row, s].item() for s in near if RAGGED[row, s]]
            expected = scores[row, t].item() / (sum(kept) / len(kept)) if RAGGED[row, t] else 0.0
            assert result[row, t].item() == pytest.approx(expected)


def test_a_course_over_positions_cancels():
    """An exponential rise: each token stands to its neighbours as any other does."""
    scores, mask = 1.3 ** torch.arange(12.0).unsqueeze(0), torch.ones(1, 12, dtype=torch.bool)
    relative = relative_to_neighbours(scores, mask, 2)[0, 2:-2]
    torch.testing.assert_close(relative, relative[:1].expand(8))
    assert relative_to_neighbours(torch.zeros(1, 12), mask, 2).sum() == 0


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_tempered_scores_equal_a_naive_loop(power):
    scores = ragged_scores()
    result = temper_scores(scores, RAGGED, power)
    for row in range(4):
        kept = scores[row][RAGGED[row]].tolist()
        expected = [(score / max(kept)) ** power for score in kept]
        assert result[row][RAGGED[row]].tolist() == pytest.approx(expected)
    assert bool((result[~RAGGED] == 0).all())


def test_clipping_by_hand():
    """The mean is 2, so that 1.5 means at most 3; a row without tokens stays empty."""
    weights = torch.tensor([[0.0, 1.0, 5.0, 9.0], [4.0, 4.0, 4.0, 4.0]])
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    assert clip_weights(weights, mask, 1.5).tolist() == [[0.0, 1.0, 3.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("factor", [1e-6, 37.0, 1e6])
def test_softmax_prior_does_not_depend_on_the_unit_of_the_scores(factor):
    scores = ragged_scores()
    torch.testing.assert_close(
        softmax_prior(factor * scores, RAGGED), softmax_prior(scores, RAGGED)
    )


def test_mix_by_hand():
    """Eq. 8: 0.7 * 0.2 + 0.3 * 0.5 = 0.29 and 0.7 * 0.8 + 0.3 * 0.5 = 0.71."""
    mixed = hybrid_weights(torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5]), mix=0.7)
    assert mixed.tolist() == pytest.approx([0.29, 0.71])


@pytest.mark.parametrize(
    ("scale", "measure"),
    [
        ("mean", lambda kept: kept.mean()),
        ("sum", lambda kept: kept.sum()),
        ("max", lambda kept: kept.max()),
    ],
)
def test_the_named_statistic_is_one_over_the_response(scale, measure):
    """W1, L8: the denominator is the number of response tokens, not the width of the batch."""
    scores = ragged_scores()
    weights = scale_weights(scores, RAGGED, scale)
    for row in range(4):
        kept, raw = weights[row][RAGGED[row]], scores[row][RAGGED[row]]
        assert measure(kept).item() == pytest.approx(1.0, abs=1e-12)
        torch.testing.assert_close(kept / kept[0], raw / raw[0])
    assert bool((weights[~RAGGED] == 0).all())


@pytest.mark.parametrize("length", [1, 2, 3, 7, 41, 49, 500])
def test_equal_scores_weigh_one_each(length):
    """To the last bit but one: shares of 1/n are scaled back."""
    mask = torch.ones(1, length, dtype=torch.bool)
    weights = scale_weights(torch.full((1, length), 0.37), mask)
    torch.testing.assert_close(weights, torch.ones(1, length), atol=2e-7, rtol=0)
