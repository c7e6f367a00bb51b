"""The built-in losses against TRL and against naive loops in fp64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.functional.log_probs import kl_divergence, token_log_probs
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.reference import Reference
from lit_tidpo.objective import Objective
from lit_tidpo.structures import TokenScores
from lit_tidpo.testing import tiny_batch, tiny_policy, tiny_scores

VOCABULARY = 48
SEEDS = range(20)


def draw_logits(batch, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, *batch.input_ids.shape, VOCABULARY)
    return 2 * torch.randn(shape, generator=generator, dtype=dtype)


def scores_of(batch, policy, reference, weights):
    """Per-token results of given logits, [N, T, V] each."""
    mask = batch.response_mask
    logps = [token_log_probs(logits, batch.input_ids, mask) for logits in (policy, reference)]
    # The distribution that predicts a token stands one position before it.
    kl = kl_divergence(reference, policy).roll(1, dims=-1).masked_fill(~mask, 0.0)
    return {
        role: TokenScores(
            mask=mask[rows],
            policy_logps=logps[0][rows],
            reference_logps=logps[1][rows],
            kl=kl[rows],
            weights=weights[rows],
        )
        for role in batch.roles
        for rows in [batch.rows(role)]
    }


def one_pair(batch, pair):
    rows = [pair, pair + batch.size]
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids[rows],
        prompt_lengths=batch.prompt_lengths[rows],
        lengths=batch.lengths[rows],
        index=batch.index[pair : pair + 1],
        counted=batch.counted[pair : pair + 1],
        supplied_weights=None,
    )


def unit_weights(scores):
    return {
        role: dataclasses.replace(part, weights=part.mask.to(part.policy_logps))
        for role, part in scores.items()
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_l2_uniform_weights_without_kl_equal_dpo_of_trl(trl_dpo, seed):
    """L2: pair by pair on random logits, labels and masks, to 1e-6."""
    batch = tiny_batch(seed=seed)
    policy, reference = draw_logits(batch, seed, torch.float32)
    scores = scores_of(batch, policy, reference, batch.response_mask.float())
    expected = []
    for pair in range(batch.size):
        rows = [pair, pair + batch.size]
        trl = trl_dpo.on_logits(policy[rows], reference[rows], one_pair(batch, pair), beta=0.1)
        expected.append(trl[0].item())
    assert max(expected) - min(expected) > 0.01  # pairs that tell formulas apart
    for component in (DPOLoss(), WeightedDPOLoss(alpha=0.0), WeightedDPOLoss(kl_term="none")):
        assert component.loss(scores, beta=0.1).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_l2_loss_and_gradients_of_a_model_equal_those_of_trl(trl_dpo, family):
    """L2: the whole path from token ids to the parameters' gradients."""
    policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
    batch = tiny_batch(pairs=4)
    expected, _, theirs = trl_dpo.on_models(policy, reference, batch, beta=0.1)
    expected.backward()
    losses = {"preference": WeightedDPOLoss(alpha=0.0)}
    objective = Objective(UniformImportance(), Weighting(mix=1.0), losses, {}, beta=0.1)
    loss = objective.evaluate(policy, Reference(reference), batch).loss.mean()
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    for (name, ours), other in zip(policy.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_unit_weights_without_kl_are_plain_dpo_to_the_last_bit(seed):
    scores = unit_weights(tiny_scores(seed=seed))
    expected = DPOLoss().loss(scores, beta=0.1)
    assert torch.equal(WeightedDPOLoss(alpha=0.0).loss(scores, beta=0.1), expected)
    assert torch.equal(WeightedDPOLoss(kl_term="none").loss(scores, beta=0.1), expected)
    assert not torch.equal(WeightedDPOLoss(alpha=0.5).loss(scores, beta=0.1), expected)


def naive_loss(batch, policy, reference, weights, beta, alpha, kl_term):
    """The loss of each pair, token by token, from probabilities in fp64."""
    losses = []
    for pair in range(batch.size):
        sums, kls = [], []
        for row in (pair, pair + batch.size):
            total, divergence = 0.0, 0.0
            for t in range(int(batch.prompt_lengths[row]), int(batch.lengths[row])):
                p, r = (logits[row, t - 1].softmax(-1) for logits in (policy, reference))
                token = batch.input_ids[row, t]
                total = total + weights[row, t] * (p[token] / r[token]).log()
                divergence = divergence + (r * (r / p).log()).sum()
            sums.append(total)
            kls.append(divergence)
        delta = sums[0] - sums[1]
        if kl_term == "tdpo1":
            delta = delta - (kls[1] - kls[0])
        elif kl_term == "tdpo2":
            delta = delta - alpha * (kls[1] - kls[0].detach())
        losses.append(-(1 / (1 + (-beta * delta).exp())).log())
    return torch.stack(losses)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kl_term", ["tdpo1", "tdpo2", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_l2_tdpo_equals_a_naive_loop_in_value_and_gradient(seed, kl_term, weighted):
    """L2: TDPO1 and TDPO2 of arXiv 2404.11999, with and without token weights, in fp64."""
    batch = tiny_batch(seed=seed)
    policy, reference = draw_logits(batch, seed, torch.float64)
    policy.requires_grad_()
    mask = batch.response_mask
    weights = batch.supplied_weights.double() if weighted else mask.double()
    scores = scores_of(batch, policy, reference, weights)
    alpha = 0.3 if kl_term == "tdpo2" else 0.5
    ours = WeightedDPOLoss(alpha=alpha, kl_term=kl_term).loss(scores, beta=0.2)
    expected = naive_loss(batch, policy, reference, weights, 0.2, alpha, kl_term)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss.sum(), policy)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-3


def test_l1_policy_equal_to_reference_costs_ln_2():
    """L1: whatever the weights and the KL term."""
    batch = tiny_batch()
    logits = draw_logits(batch, 0, torch.float32)[0]
    scores = scores_of(batch, logits, logits, batch.supplied_weights)
    for component in (DPOLoss(), WeightedDPOLoss(), WeightedDPOLoss(kl_term="tdpo1")):
        assert component.loss(scores, beta=0.1).tolist() == [pytest.approx(math.log(2))] * 3


def test_l10_swapped_roles_shift_the_loss_by_the_margin():
    """L10: loss(swapped) - loss = beta * margin, so the margin has changed its sign."""
    scores = tiny_scores()
    swapped = {"chosen": scores["rejected"], "rejected": scores["chosen"]}
    margin = []
    for pair in range(3):
        sums = [
            sum((part.weights[pair] * part.log_ratios[pair])[part.mask[pair]].tolist())
            for part in (scores["chosen"], scores["rejected"])
        ]
        margin.append(sums[0] - sums[1])
    component = WeightedDPOLoss(alpha=0.0)
    shift = component.loss(swapped, beta=0.3) - component.loss(scores, beta=0.3)
    assert shift.tolist() == pytest.approx([0.3 * value for value in margin], abs=1e-6)


@pytest.mark.parametrize("kl_term", ["tdpo1", "none"])
def test_g10_an_alpha_without_effect_is_refused(kl_term):
    with pytest.raises(InputError, match=r"alpha=0\.3 has no effect"):
        WeightedDPOLoss(alpha=0.3, kl_term=kl_term)


def test_divergences_are_asked_for_where_they_count_only():
    assert "kl" in WeightedDPOLoss().needs
    assert "kl" in WeightedDPOLoss(kl_term="tdpo1").needs
    assert "kl" not in WeightedDPOLoss(alpha=0.0).needs
    assert "kl" not in WeightedDPOLoss(kl_term="none").needs
    assert {"weights", "reference.logps"} <= WeightedDPOLoss().needs
    assert DPOLoss().needs == {"reference.logps"}
    assert TripletLoss().needs == {"reference.logps", "anchor"}


def test_a_negative_alpha_is_refused():
    with pytest.raises(InputError, match=r"alpha=-0\.1"):
        WeightedDPOLoss(alpha=-0.1)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_triplet_equals_a_naive_loop(seed, mean):
    """Eq. 13 over response positions, in plain Python."""
    scores = tiny_scores(pairs=4, seed=seed)
    ratios = {
        role: [part.log_ratios[pair][part.mask[pair]].tolist() for pair in range(4)]
        for role, part in scores.items()
    }

    def distance(pair, role):
        shared = list(zip(ratios["anchor"][pair], ratios[role][pair], strict=False))
        total = sum((a - b) ** 2 for a, b in shared)
        return total / len(shared) if mean else total

    expected = [
        max(0.0, distance(pair, "chosen") - distance(pair, "rejected") + 0.5) for pair in range(4)
    ]
    ours = TripletLoss(margin=0.5, mean=mean).loss(scores, beta=0.1)
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)


def test_triplet_has_gradients_for_all_three_roles():
    scores = tiny_scores()
    loss = TripletLoss(margin=50.0).loss(scores, beta=0.1)
    leaves = [scores[role].policy_logps for role in ("anchor", "chosen", "rejected")]
    for gradient in torch.autograd.grad(loss.sum(), leaves):
        assert bool((gradient.abs().sum(-1) > 0).all())
