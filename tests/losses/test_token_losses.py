"""Losses that weigh tokens of their own accord, against plain Python token by token in fp64."""

from __future__ import annotations

import copy
from math import exp, log1p

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.plugins.registry import LOSSES, load
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_context

SIGN = {"chosen": 1, "rejected": -1}


def make(name, **arguments):
    return load(LOSSES, name, LossComponent)(**arguments)


def fp64_context(*models, seed=0):
    context = tiny_context(seed=seed, models=["reference", *models])
    rows = context.responses
    return LossContext(Results(rows.batch, {k: v.detach().double() for k, v in rows.items()}))


def tokens(context, role, pair):
    """Each token of a response as a dictionary of what is known of it."""
    results = context[role]
    places = results.mask[pair].nonzero().flatten().tolist()
    return [
        {need: values[pair, t] for need, values in results.items() if values.dim() > 1}
        for t in places
    ]


def log_ratio(token):
    return token["policy.logps"].item() - token["reference.logps"].item()


def losses(context, beta, score):
    """``-log sigmoid(beta (score of chosen - score of rejected))`` of each pair."""
    found = []
    for pair in range(context.responses.batch.size):
        chosen, rejected = (score(role, tokens(context, role, pair)) for role in SIGN)
        found.append(log1p(exp(-beta * (chosen - rejected))))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_d2po_decays_from_the_first_token_of_the_response(seed):
    context = fp64_context(seed=seed)

    def score(role, response):
        return sum(0.8**t * log_ratio(token) for t, token in enumerate(response))

    loss = make("d2po", beta=0.7, gamma=0.8).loss(context)
    assert loss.tolist() == pytest.approx(losses(context, 0.7, score))
    assert torch.equal(make("d2po", gamma=1.0).loss(context), DPOLoss().loss(context))


@pytest.mark.parametrize("seed", range(2))
def test_tis_dpo_weighs_by_the_clamped_contrast_of_two_models(seed):
    context = fp64_context("positive", "negative", seed=seed)

    def score(role, response):
        total = 0.0
        for token in response:
            contrast = (token["positive.logps"] - token["negative.logps"]).item()
            factor = exp(SIGN[role] * 0.8 * min(max(contrast, -0.4), 0.6))
            total += factor * log_ratio(token)
        return total

    loss = make("tis_dpo", mu=0.8, low=-0.4, high=0.6, beta=0.7).loss(context)
    assert loss.tolist() == pytest.approx(losses(context, 0.7, score))
    assert make("tis_dpo").needs == {"reference.logps", "positive.logps", "negative.logps"}


@pytest.mark.parametrize("seed", range(2))
def test_tgdpo_weighs_by_the_reward_of_its_guide(seed):
    context = fp64_context("guide", seed=seed)

    def score(role, response):
        total = 0.0
        for token in response:
            reward = 0.7 * (token["guide.logps"] - token["reference.logps"]).item()
            total += (1 + SIGN[role] * 0.5 * reward) * log_ratio(token)
        return total

    loss = make("tgdpo", beta=0.7, alpha=0.5).loss(context)
    assert loss.tolist() == pytest.approx(losses(context, 0.7, score))
    assert torch.equal(make("tgdpo", alpha=0.0).loss(context), DPOLoss().loss(context))


@pytest.mark.parametrize("seed", range(2))
def test_sepo_takes_the_best_of_chosen_and_the_worst_of_rejected(seed):
    context = fp64_context("oracle", seed=seed)

    def score(role, response):
        def reward(token):
            return SIGN[role] * (token["oracle.logps"] - token["reference.logps"]).item()

        kept = sorted(response, key=reward, reverse=True)[: max(1, int(0.4 * len(response)))]
        return sum(token["policy.logps"].item() for token in kept) / len(kept)

    loss = make("sepo", beta=1.5, share=0.4).loss(context)
    assert loss.tolist() == pytest.approx(losses(context, 1.5, score))


@pytest.mark.parametrize("seed", range(2))
def test_conf_po_takes_the_tokens_below_the_mean_probability(seed):
    context = fp64_context(seed=seed)

    def score(role, response):
        mean = sum(exp(token["policy.logps"]) for token in response) / len(response)
        kept = [t["policy.logps"].item() for t in response if exp(t["policy.logps"]) <= mean]
        return sum(kept) / len(kept)

    loss = make("conf_po", beta=1.5, margin=0.0).loss(context)
    assert loss.tolist() == pytest.approx(losses(context, 1.5, score))


def test_conf_po_of_equal_tokens_takes_them_however_their_mean_is_rounded():
    context = fp64_context()
    logps = context.responses["policy.logps"]
    rows = Results(context.responses.batch, {"policy.logps": torch.full_like(logps, -0.1).float()})
    loss = make("conf_po", beta=1.5, margin=0.0).loss(LossContext(rows))
    assert loss.tolist() == pytest.approx([log1p(1)] * 3)


def with_masks(common):
    """SparsePO with the masks ``max(0, 1 + a . h)`` of given ``a``."""
    loss = make("sparse_po", beta=0.7, common=common)
    rows = 1 if common else 2
    loss.masks(torch.zeros(1, 8))
    generator = torch.Generator().manual_seed(1)
    weight = 2 * torch.randn((rows, 8), generator=generator)
    weight -= weight.mean(-1, keepdim=True)  # so that some masks are 0, others not
    loss.load_state_dict({"masks.weight": weight, "masks.bias": torch.zeros(rows)})
    return loss, weight.double()


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_sparse_po_masks_rewards_and_divergences(seed, common):
    context = fp64_context(seed=seed)
    loss, weight = with_masks(common)
    off = []

    def score(role, response):
        total = 0.0
        for token in response:
            u, v = (max(0.0, 1 + float(weight[row] @ token["reference.hidden"])) for row in (0, -1))
            total += u * log_ratio(token) + v * token["reference.kl"].item()
            off.append(u == 0.0)
        return total

    expected = losses(context, 0.7, score)
    assert loss.loss(context).tolist() == pytest.approx(expected, rel=1e-5)
    assert 0 < sum(off) < len(off)


def test_sparse_po_with_masks_of_ones_is_tdpo1():
    context = fp64_context()
    loss, _ = with_masks(common=False)
    torch.nn.init.zeros_(loss.masks.weight)
    expected = WeightedDPOLoss(kl_term="tdpo1", beta=0.7).loss(
        LossContext(
            Results(
                context.responses.batch,
                {**context.responses, "weights": torch.ones_like(context.responses["weights"])},
            )
        )
    )
    torch.testing.assert_close(loss.loss(context), expected)


def test_both_masks_of_sparse_po_take_gradients():
    context = fp64_context()
    loss, _ = with_masks(common=False)
    loss.loss(context).sum().backward()
    assert loss.masks.weight.grad.abs().sum(-1).min() > 0
    assert copy.deepcopy(loss).masks.weight.shape == (2, 8)


def ratio_matching(logs, power):
    """Mean of the scaled Basu divergence with the scale 4 over given ``log R``."""
    if power == 0:
        return sum((exp(x) + x) / 4 for x in logs) / len(logs)
    powers = [exp((power + 1) * x) / (power + 1) - exp(-power * x) / power for x in logs]
    return sum(powers) / 4 / len(logs)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("power", [0.0, 0.7])
def test_tbpo_matches_ratios_at_the_places_that_both_responses_have(seed, power):
    context = fp64_context(seed=seed)
    expected = []
    for pair in range(context.responses.batch.size):
        both = zip(*(tokens(context, role, pair) for role in SIGN), strict=False)
        logs = []
        for chosen, rejected in both:
            worth = (rejected["reference.kl"] - chosen["reference.kl"]).item()
            logs.append(0.3 * (log_ratio(rejected) - log_ratio(chosen) + worth))
        expected.append(ratio_matching(logs, power))
    loss = make("tbpo", beta=0.3, power=power).loss(context)
    assert loss.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.2, 10.0])
def test_tbpo_q_centres_and_clamps_its_baseline(limit):
    context = fp64_context()
    weight = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    loss = make("tbpo_q", beta=0.3, limit=limit)
    loss.baseline(torch.zeros(1, 8))
    loss.load_state_dict({"baseline.weight": weight, "baseline.bias": torch.tensor([5.0])})
    expected = []
    for pair in range(context.responses.batch.size):
        both = list(zip(*(tokens(context, role, pair) for role in SIGN), strict=False))
        worth = [
            float((rejected["policy.hidden"] - chosen["policy.hidden"]) @ weight[0].double())
            for chosen, rejected in both
        ]
        mean = sum(worth) / len(worth)
        logs = [
            0.3 * (log_ratio(rejected) - log_ratio(chosen) + min(max(c - mean, -limit), limit))
            for (chosen, rejected), c in zip(both, worth, strict=True)
        ]
        expected.append(ratio_matching(logs, 0.0))
    assert loss.loss(context).tolist() == pytest.approx(expected, rel=1e-5)
    assert loss.loss(context).requires_grad  # of the baseline


def test_a_negative_power_is_refused():
    with pytest.raises(InputError, match=r"power=-1\.0: expected a finite number of 0 or more"):
        make("tbpo", power=-1.0)


def test_at_the_reference_tbpo_has_dpo_s_gradient_for_each_place():
    """``log R = 0`` everywhere: half of ``beta`` by the number of places, down and up."""
    context = fp64_context()
    rows = context.responses
    policy = rows["reference.logps"].clone().requires_grad_()
    values = {**rows, "policy.logps": policy, "reference.kl": torch.zeros_like(policy)}
    make("tbpo", beta=0.3).loss(LossContext(Results(rows.batch, values))).sum().backward()
    lengths = rows.mask.sum(-1)
    shared = torch.minimum(lengths[:3], lengths[3:])
    for row in range(6):
        count = shared[row % 3].item()
        gradient = policy.grad[row][rows.mask[row]][:count]
        sign = -1 if row < 3 else 1
        assert gradient.tolist() == pytest.approx([sign * 0.3 / 2 / count] * count)
