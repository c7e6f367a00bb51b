"""Token-weighted DPO with TDPO's KL term against TRL and against naive loops in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.objective import Objective
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_context, tiny_policy

from .logits import SEEDS, context_of, draw_logits, trl_losses


def unit_weights(context):
    responses = context.responses
    ones = {"weights": responses.mask.to(responses["policy.logps"])}
    return LossContext(Results(responses.batch, {**responses, **ones}))


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_weights_without_kl_equal_dpo_of_trl(trl_dpo, seed):
    """L2: pair by pair on random logits, labels and masks, to 1e-6."""
    batch = tiny_batch(seed=seed)
    policy, reference = draw_logits(batch, seed, torch.float32)
    context = context_of(batch, policy, reference, batch.response_mask.float())
    expected = trl_losses(trl_dpo, batch, policy, reference)
    for component in (WeightedDPOLoss(alpha=0.0), WeightedDPOLoss(kl_term="none")):
        assert component.loss(context).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_and_gradients_of_a_model_equal_those_of_trl(trl_dpo, family):
    """L2: the whole path from token ids to the parameters' gradients."""
    policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
    batch = tiny_batch(pairs=4)
    expected, _, theirs = trl_dpo.on_models(policy, reference, batch, beta=0.1)
    expected.backward()
    losses = {"preference": WeightedDPOLoss(alpha=0.0)}
    objective = Objective(UniformImportance(), "mean", losses, {})
    models = Models(policy, {"reference": FrozenModel(reference)})
    loss = objective.evaluate(models, batch).loss.mean()
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    for (name, ours), other in zip(policy.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_unit_weights_without_kl_are_plain_dpo_to_the_last_bit(seed):
    context = unit_weights(tiny_context(seed=seed))
    expected = DPOLoss().loss(context)
    assert torch.equal(WeightedDPOLoss(alpha=0.0).loss(context), expected)
    assert torch.equal(WeightedDPOLoss(kl_term="none").loss(context), expected)
    assert not torch.equal(WeightedDPOLoss(alpha=0.5).loss(context), expected)


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
def test_tdpo_equals_a_naive_loop_in_value_and_gradient(seed, kl_term, weighted):
    """L2: TDPO1 and TDPO2 of arXiv 2404.11999, with and without token weights, in fp64."""
    batch = tiny_batch(seed=seed)
    policy, reference = draw_logits(batch, seed, torch.float64)
    policy.requires_grad_()
    mask = batch.response_mask
    weights = batch.supplied_weights.double() if weighted else mask.double()
    context = context_of(batch, policy, reference, weights)
    alpha = 0.3 if kl_term == "tdpo2" else 0.5
    ours = WeightedDPOLoss(alpha=alpha, kl_term=kl_term, beta=0.2).loss(context)
    expected = naive_loss(batch, policy, reference, weights, 0.2, alpha, kl_term)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss.sum(), policy)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-3


def test_policy_equal_to_reference_costs_ln_2():
    """L1: whatever the weights and the KL term."""
    batch = tiny_batch()
    logits = draw_logits(batch, 0, torch.float32)[0]
    context = context_of(batch, logits, logits, batch.supplied_weights)
    for component in (WeightedDPOLoss(), WeightedDPOLoss(kl_term="tdpo1")):
        assert component.loss(context).tolist() == [pytest.approx(math.log(2))] * 3


def test_swapped_roles_shift_the_loss_by_the_margin():
    """L10: loss(swapped) - loss = beta * margin, so the margin has changed its sign."""
    context = tiny_context()
    swapped = tiny_context()
    swapped["chosen"], swapped["rejected"] = swapped["rejected"], swapped["chosen"]
    margin = []
    for pair in range(3):
        sums = [
            sum((part["weights"][pair] * part.log_ratios[pair])[part.mask[pair]].tolist())
            for part in (context["chosen"], context["rejected"])
        ]
        margin.append(sums[0] - sums[1])
    component = WeightedDPOLoss(alpha=0.0, beta=0.3)
    shift = component.loss(swapped) - component.loss(context)
    assert shift.tolist() == pytest.approx([0.3 * value for value in margin], abs=1e-6)


@pytest.mark.parametrize("kl_term", ["tdpo1", "none"])
def test_an_alpha_without_effect_is_refused(kl_term):
    with pytest.raises(InputError, match=r"alpha=0\.3 has no effect"):
        WeightedDPOLoss(alpha=0.3, kl_term=kl_term)


def test_divergences_are_asked_for_where_they_count_only():
    assert "reference.kl" in WeightedDPOLoss().needs
    assert "reference.kl" in WeightedDPOLoss(kl_term="tdpo1").needs
    assert "reference.kl" not in WeightedDPOLoss(alpha=0.0).needs
    assert "reference.kl" not in WeightedDPOLoss(kl_term="none").needs
    assert {"weights", "reference.logps"} <= WeightedDPOLoss().needs


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(InputError, match=rf"alpha={alpha}"):
        WeightedDPOLoss(alpha=alpha)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(InputError, match=rf"beta={beta}: expected a finite number above 0"):
        WeightedDPOLoss(beta=beta)
