"""The hybrid rule, what combines with it, and the scale of the weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lit_tidpo.errors import InputError, NonFiniteError
from lit_tidpo.functional import scale_weights
from lit_tidpo.importance.base import ImportanceEstimator, checked_scores
from lit_tidpo.importance.clipped_importance import ClippedImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.priors import GaussianPrior, SoftmaxPrior, UniformPrior
from lit_tidpo.importance.tempered_importance import TemperedImportance
from lit_tidpo.schedules import LinearSchedule, at
from lit_tidpo.structures import Results
from lit_tidpo.testing import check_importance_estimator, tiny_batch

DEFAULTS = {
    "mix": 0.7,
    "prior": "gaussian",
    "raw": False,
    "sigma_divisor": 4.0,
    "scale": "mean",
    "positions": "response",
    "temper": 1.0,
    "clip": None,
}


class Given(ImportanceEstimator):
    """Scores that a test draws."""

    def __init__(self, given, signed=False):
        self.given = given
        self.signed = signed

    def scores(self, results):
        return self.given


def weigh(scores, batch, **options):
    """Weights of given scores."""
    options = {**DEFAULTS, **options}
    prior = GaussianPrior(options["sigma_divisor"], options["raw"])
    if options["prior"] == "softmax":
        prior = SoftmaxPrior()
    estimator = Given(scores)
    if options["temper"] != 1:
        estimator = TemperedImportance(estimator, options["temper"])
    estimator = HybridImportance(estimator, prior, options["mix"], options["positions"])
    if options["clip"] is not None:
        estimator = ClippedImportance(estimator, options["clip"])
    mixed = checked_scores(estimator, Results(batch, {}))
    return scale_weights(mixed, batch.response_mask, options["scale"])


def draw_scores(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch.input_ids.shape, generator=generator)


def naive_weights(row, first, start, end, options):
    """Weights of the response of one row; `first` is where normalisation begins."""
    scores = row[first:end]
    count = len(scores)
    scores = [score ** options["temper"] for score in scores]
    shares = [score / sum(scores) for score in scores]
    if options["prior"] == "softmax":
        prior = [math.exp(share * count) for share in shares]
    else:
        sigma = count / options["sigma_divisor"]
        prior = [math.exp(-(((t - (count - 1) / 2) / sigma) ** 2) / 2) for t in range(count)]
    if not options["raw"]:
        prior = [value / sum(prior) for value in prior]
    mix = options["mix"]
    mixed = [mix * s + (1 - mix) * p for s, p in zip(shares, prior, strict=True)]
    kept = mixed[start - first :]
    if options["clip"] is not None:
        kept = [min(weight, options["clip"] * sum(kept) / len(kept)) for weight in kept]
    scales = {"mean": sum(kept) / len(kept), "sum": sum(kept), "max": max(kept), "none": 1.0}
    return [weight / scales[options["scale"]] for weight in kept]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": 0.0},
        {"mix": 1.0},
        {"mix": 0.3, "raw": True},
        {"sigma_divisor": 8.0},
        {"prior": "softmax"},
        {"scale": "sum"},
        {"scale": "none"},
        {"scale": "max", "sigma_divisor": 2.0},
        {"positions": "all"},
        {"positions": "all", "raw": True, "scale": "sum"},
        {"temper": 0.5},
        {"temper": 3.0, "prior": "softmax"},
        {"clip": 1.2},
        {"clip": 1.1, "positions": "all", "scale": "max"},
    ],
)
def test_every_option_equals_a_naive_loop(options):
    """Eq. 7-8, and G10: each option has its own effect."""
    batch, whole = tiny_batch(), {**DEFAULTS, **options}
    scores = draw_scores(batch)
    weights = weigh(scores, batch, **options)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        first = 0 if whole["positions"] == "all" else start
        expected = naive_weights(scores[row].tolist(), first, start, end, whole)
        assert weights[row, start:end].tolist() == pytest.approx(expected, rel=1e-5)
    if options:
        assert (weights - weigh(scores, batch)).abs().max() > 1e-3


def test_weights_are_data_with_mean_one_on_the_response():
    """W1: detached, not negative, zero off the response."""
    batch = tiny_batch()
    weights = weigh(draw_scores(batch).requires_grad_(), batch)
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
def test_prompt_tokens_move_neither_prior_nor_normalisation(options):
    """W2: however many there are and whatever their scores."""
    batch = tiny_batch()
    scores = draw_scores(batch)
    longer, padded = with_longer_prompts(batch, scores, extra=4, prompt_scores=100.0)
    ours = weigh(padded, longer, **options)
    torch.testing.assert_close(ours[:, 4:], weigh(scores, batch, **options), atol=1e-6, rtol=0)
    assert not bool(ours[:, :4].any())


def test_prompt_tokens_count_where_all_positions_do():
    batch = tiny_batch()
    scores = draw_scores(batch)
    longer, padded = with_longer_prompts(batch, scores, extra=4, prompt_scores=100.0)
    ours = weigh(padded, longer, positions="all")[:, 4:]
    assert not torch.allclose(ours, weigh(scores, batch, positions="all"), atol=1e-3)
    assert HybridImportance(positions="all").spans_prompt
    assert not HybridImportance().spans_prompt
    assert ClippedImportance(HybridImportance(positions="all"), 2.0).spans_prompt


def test_scores_without_any_signal_leave_the_prior_over_even_shares():
    batch = tiny_batch()
    ours = weigh(torch.zeros(batch.input_ids.shape), batch)
    torch.testing.assert_close(ours, weigh(torch.ones(batch.input_ids.shape), batch))


def test_clipped_weights_keep_mean_one_and_uniform_weights_stay():
    batch = tiny_batch()
    clipped = weigh(draw_scores(batch).pow(8), batch, mix=1.0, clip=1.0)
    counts = batch.response_mask.sum(-1)
    torch.testing.assert_close(clipped.sum(-1) / counts, torch.ones(6), atol=1e-6, rtol=0)
    even = weigh(torch.ones(clipped.shape), batch, mix=1.0, clip=1.0, temper=0.3)
    torch.testing.assert_close(even, batch.response_mask.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_tempered_scores_of_any_unit_stay_finite(factor):
    batch = tiny_batch()
    scores = draw_scores(batch)
    torch.testing.assert_close(
        weigh(scores * factor, batch, temper=4.0), weigh(scores, batch, temper=4.0)
    )


def test_bf16_scores_are_weighted_in_fp32():
    batch = tiny_batch()
    scores = draw_scores(batch).bfloat16()
    weights = weigh(scores, batch)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, weigh(scores.float(), batch))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_raise(bad):
    """W7, L7: there is no silent uniform fallback."""
    batch = tiny_batch()
    scores = draw_scores(batch)
    scores[1, int(batch.prompt_lengths[1])] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinite at supervised tokens"):
        weigh(scores, batch)


def test_scores_that_overflow_in_fp32_raise():
    batch = tiny_batch()
    scores = draw_scores(batch).double() * 1e300
    with pytest.raises(NonFiniteError, match="NaN or infinite at supervised tokens"):
        weigh(scores, batch)


def test_negative_scores_and_other_shapes_raise():
    batch = tiny_batch()
    scores = draw_scores(batch)
    with pytest.raises(InputError, match=r"shape \(6, 15\); expected \(6, 16\)"):
        weigh(scores[:, 1:], batch)
    scores[2, int(batch.lengths[2]) - 1] = -0.25
    with pytest.raises(InputError, match=r"must not be negative; the lowest is -0\.25"):
        weigh(scores, batch)


def test_scores_off_the_response_may_be_anything():
    """L6."""
    batch = tiny_batch()
    scores = draw_scores(batch)
    planted = scores.masked_fill(~batch.response_mask, math.nan)
    assert torch.equal(weigh(planted, batch), weigh(scores, batch))


def test_signed_scores_keep_their_signs_and_are_scaled_by_their_size():
    batch = tiny_batch()
    mask = batch.response_mask
    scores = (draw_scores(batch) - 0.5).masked_fill(~mask, 0.0)
    found = checked_scores(Given(scores, signed=True), Results(batch, {}))
    assert torch.equal(scale_weights(found, mask, "none"), scores)
    for scale, reduce in (("sum", "sum"), ("max", "max")):
        weights = scale_weights(found, mask, scale)
        assert torch.equal(weights.sign(), scores.sign())
        sizes = weights.abs().sum(-1) if reduce == "sum" else weights.abs().amax(-1)
        torch.testing.assert_close(sizes, torch.ones(6))


def test_the_scores_inside_are_kept_beside_the_mixture():
    """W7: metrics tell of the attribution itself, not of what it was mixed with."""
    batch = tiny_batch()
    results, scores = Results(batch, {}), draw_scores(batch)
    checked_scores(ClippedImportance(HybridImportance(Given(scores)), 2.0), results)
    assert torch.equal(results["scores"], scores)


@pytest.mark.parametrize(
    "estimator",
    [
        HybridImportance(),
        HybridImportance(prior=SoftmaxPrior()),
        HybridImportance(prior=GaussianPrior(raw=True), positions="all"),
        TemperedImportance(HybridImportance(), 0.5),
        ClippedImportance(HybridImportance(mix=1.0), 1.5),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_contract(estimator):
    check_importance_estimator(estimator)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: HybridImportance(mix=-0.1), "mix=-0.1: expected a number from 0 to 1"),
        (lambda: HybridImportance(mix=1.1), "mix=1.1: expected a number from 0 to 1"),
        (lambda: HybridImportance(mix=math.nan), "mix=nan: expected a number from 0 to 1"),
        (lambda: HybridImportance(positions="prompt"), "positions='prompt': expected one of"),
        (lambda: GaussianPrior(0.0), "sigma_divisor=0.0: expected a finite number above 0"),
        (lambda: GaussianPrior(math.inf), "sigma_divisor=inf: expected a finite number above 0"),
        (lambda: TemperedImportance(Given(1), 0.0), "power=0.0: expected a finite number above 0"),
        (lambda: TemperedImportance(Given(1), math.nan), "power=nan: expected a finite number"),
        (lambda: ClippedImportance(Given(1), 0.9), "limit=0.9: expected a finite number of 1"),
        (lambda: ClippedImportance(Given(1), math.nan), "limit=nan: expected a finite number of 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


@pytest.mark.parametrize(("share", "expected"), [(0.0, [1.0, 1.0]), (0.5, [1.25, 0.75])])
def test_weights_anneal_from_uniform_ones(share, expected):
    """Scores of 3 and 1 are 0.75 and 0.25 of their sum; half of the way the mix is 0.5."""
    results = Results(tiny_batch(pairs=1), {}, torch.tensor([[True, True], [True, True]]))
    importance = HybridImportance(
        Given(torch.tensor([[3.0, 1.0], [3.0, 1.0]])), UniformPrior(), LinearSchedule(0.0, 1.0)
    )
    weights = scale_weights(at(importance, share).scores(results), results.mask, "mean")
    torch.testing.assert_close(weights, torch.tensor([expected, expected]))
