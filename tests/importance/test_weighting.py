"""The hybrid rule and its open choices."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lit_tidpo.errors import InputError, NonFiniteError
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.testing import tiny_batch


def draw_scores(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch.input_ids.shape, generator=generator)


def naive_weights(row, first, start, end, options):
    """Weights of the response of one row; `first` is where normalisation begins."""
    scores = row[first:end]
    count = len(scores)
    scores = [score**options.temper for score in scores]
    shares = [score / sum(scores) for score in scores]
    if options.prior == "softmax":
        prior = [math.exp(share * count) for share in shares]
    else:
        sigma = count / options.sigma_divisor
        prior = [math.exp(-(((t - (count - 1) / 2) / sigma) ** 2) / 2) for t in range(count)]
    if options.prior_scale == "distribution":
        prior = [value / sum(prior) for value in prior]
    mixed = [options.mix * s + (1 - options.mix) * p for s, p in zip(shares, prior, strict=True)]
    kept = mixed[start - first :]
    if options.clip is not None:
        kept = [min(weight, options.clip * sum(kept) / len(kept)) for weight in kept]
    divisor = {"mean": sum(kept) / len(kept), "sum": sum(kept), "max": max(kept)}[options.scale]
    return [weight / divisor for weight in kept]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": 0.0},
        {"mix": 1.0},
        {"mix": 0.3, "prior_scale": "raw"},
        {"sigma_divisor": 8.0},
        {"prior": "softmax"},
        {"scale": "sum"},
        {"scale": "max", "sigma_divisor": 2.0},
        {"positions": "all"},
        {"positions": "all", "prior_scale": "raw", "scale": "sum"},
        {"temper": 0.5},
        {"temper": 3.0, "prior": "softmax"},
        {"temper": 2.0, "positions": "all"},
        {"clip": 1.2},
        {"clip": 1.1, "positions": "all", "scale": "max"},
    ],
)
def test_every_option_equals_a_naive_loop(options):
    """Eq. 7-8, and G10: each option has its own effect."""
    batch, weighting = tiny_batch(), Weighting(**options)
    scores = draw_scores(batch)
    weights = weighting.weights(scores, batch)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        first = 0 if weighting.positions == "all" else start
        expected = naive_weights(scores[row].tolist(), first, start, end, weighting)
        assert weights[row, start:end].tolist() == pytest.approx(expected, rel=1e-5)
    if options:
        default = Weighting().weights(scores, batch)
        assert (weights - default).abs().max() > 1e-3


def test_w1_weights_are_data_with_mean_one_on_the_response():
    """W1: detached, not negative, zero off the response."""
    batch = tiny_batch()
    weights = Weighting().weights(draw_scores(batch).requires_grad_(), batch)
    mask = batch.response_mask
    assert not weights.requires_grad
    assert weights.min() >= 0
    assert bool((weights[~mask] == 0).all())
    means = weights.sum(-1) / mask.sum(-1)
    torch.testing.assert_close(means, torch.ones(6), atol=1e-6, rtol=0)


def with_longer_prompts(batch, scores, extra, prompt_scores):
    """The same responses and scores behind `extra` more prompt tokens."""
    return (
        dataclasses.replace(
            batch,
            input_ids=torch.cat([torch.full((6, extra), 7), batch.input_ids], dim=1),
            prompt_lengths=batch.prompt_lengths + extra,
            lengths=batch.lengths + extra,
            supplied_weights=None,
        ),
        torch.cat([torch.full((6, extra), prompt_scores), scores], dim=1),
    )


@pytest.mark.parametrize("options", [{}, {"prior": "softmax"}, {"scale": "sum"}])
def test_w2_prompt_tokens_move_neither_prior_nor_normalisation(options):
    """W2: however many there are and whatever their scores."""
    batch, weighting = tiny_batch(), Weighting(**options)
    scores = draw_scores(batch)
    longer, padded = with_longer_prompts(batch, scores, extra=4, prompt_scores=100.0)
    expected = weighting.weights(scores, batch)
    ours = weighting.weights(padded, longer)
    torch.testing.assert_close(ours[:, 4:], expected, atol=1e-6, rtol=0)
    assert not bool(ours[:, :4].any())


def test_prompt_tokens_count_where_all_positions_do():
    batch, weighting = tiny_batch(), Weighting(positions="all")
    scores = draw_scores(batch)
    longer, padded = with_longer_prompts(batch, scores, extra=4, prompt_scores=100.0)
    ours = weighting.weights(padded, longer)[:, 4:]
    assert not torch.allclose(ours, weighting.weights(scores, batch), atol=1e-3)


def test_scores_without_any_signal_leave_the_prior_over_even_shares():
    batch = tiny_batch()
    ours = Weighting().weights(torch.zeros(batch.input_ids.shape), batch)
    expected = Weighting().weights(torch.ones(batch.input_ids.shape), batch)
    torch.testing.assert_close(ours, expected)


def test_clipped_weights_keep_mean_one_and_uniform_weights_stay():
    batch = tiny_batch()
    clipped = Weighting(mix=1.0, clip=1.0).weights(draw_scores(batch).pow(8), batch)
    counts = batch.response_mask.sum(-1)
    torch.testing.assert_close(clipped.sum(-1) / counts, torch.ones(6), atol=1e-6, rtol=0)
    even = Weighting(mix=1.0, clip=1.0, temper=0.3).weights(torch.ones(clipped.shape), batch)
    torch.testing.assert_close(even, batch.response_mask.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_tempered_scores_of_any_unit_stay_finite(factor):
    batch, weighting = tiny_batch(), Weighting(temper=4.0)
    scores = draw_scores(batch)
    torch.testing.assert_close(
        weighting.weights(scores * factor, batch), weighting.weights(scores, batch)
    )


def test_bf16_scores_are_weighted_in_fp32():
    batch = tiny_batch()
    scores = draw_scores(batch).bfloat16()
    weights = Weighting().weights(scores, batch)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, Weighting().weights(scores.float(), batch))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_w7_l7_scores_that_are_not_finite_raise(bad):
    """W7, L7: there is no silent uniform fallback."""
    batch = tiny_batch()
    scores = draw_scores(batch)
    scores[1, int(batch.prompt_lengths[1])] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinite at supervised tokens"):
        Weighting().weights(scores, batch)


def test_w1_negative_scores_and_other_shapes_raise():
    batch = tiny_batch()
    scores = draw_scores(batch)
    with pytest.raises(InputError, match=r"shape \(6, 15\); expected \(6, 16\)"):
        Weighting().weights(scores[:, 1:], batch)
    scores[2, int(batch.lengths[2]) - 1] = -0.25
    with pytest.raises(InputError, match=r"must not be negative; the lowest is -0\.25"):
        Weighting().weights(scores, batch)


def test_l6_scores_off_the_response_may_be_anything():
    batch = tiny_batch()
    scores = draw_scores(batch)
    planted = scores.masked_fill(~batch.response_mask, math.nan)
    assert torch.equal(Weighting().weights(planted, batch), Weighting().weights(scores, batch))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mix": -0.1}, "expected a number from 0 to 1"),
        ({"mix": 1.1}, "expected a number from 0 to 1"),
        ({"sigma_divisor": 0.0}, "expected more than 0"),
        ({"temper": 0.0}, "expected more than 0"),
        ({"temper": math.nan}, "expected more than 0"),
        ({"clip": 0.9}, "expected 1 or more, or null"),
        ({"clip": math.nan}, "expected 1 or more, or null"),
        ({"prior": "softmax", "prior_scale": "raw"}, "no effect with weighting.prior='softmax'"),
        ({"prior": "softmax", "sigma_divisor": 8.0}, "no effect with weighting.prior='softmax'"),
    ],
)
def test_settings_out_of_range_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        Weighting(**options)
