"""Kinds of losses that nothing built in is an example of, through the objective and the check."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from lit_tidpo.errors import InputError
from lit_tidpo.functional import dpo_loss, sequence_sum
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.base import LossComponent, LossContext, LossValues
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.kto_loss import KTOLoss
from lit_tidpo.metrics.quantities import objective_quantities, quantity_names
from lit_tidpo.models.models import Models
from lit_tidpo.models.packed_attention import use_packed_attention
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.objective import Objective
from lit_tidpo.structures import Results
from lit_tidpo.testing import (
    check_loss_component,
    tiny_batch,
    tiny_context,
    tiny_groups,
    tiny_policy,
)


def make_objective(**losses):
    return Objective(UniformImportance(), "mean", losses, {})


@pytest.fixture
def models():
    return Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})


def log_probs(model, batch, row):
    """Log-probs of the response tokens of one row, which runs alone and unpadded."""
    ids = batch.input_ids[row, : batch.lengths[row]]
    logps = model(ids[None]).logits[0].log_softmax(-1)
    return [logps[t - 1, ids[t]].item() for t in range(int(batch.prompt_lengths[row]), len(ids))]


# Without a reference


class LengthNormalised(LossComponent):
    """SimPO without a margin (arXiv 2405.14734, Eq. 6)."""

    def __init__(self, beta=2.0):
        self.beta = beta

    def loss(self, context):
        chosen, rejected = (
            sequence_sum(context[role]["policy.logps"], context[role].mask)
            / context[role].mask.sum(-1)
            for role in ("chosen", "rejected")
        )
        return dpo_loss(chosen - rejected, self.beta)


def test_without_a_reference_nothing_runs_but_the_policy():
    objective, policy, batch = make_objective(mine=LengthNormalised()), tiny_policy(), tiny_batch()
    assert objective.models == objective.needs == frozenset()
    found = objective.evaluate(Models(policy), batch)
    assert found.context.responses.keys() == {"policy.logps"}
    for pair in range(3):
        logps = [log_probs(policy, batch, row) for row in (pair, pair + 3)]
        means = [sum(values) / len(values) for values in logps]
        expected = math.log1p(math.exp(-2.0 * (means[0] - means[1])))
        assert found.loss[pair].item() == pytest.approx(expected, rel=1e-4)


def test_without_a_reference_no_rewards_are_told():
    objective = make_objective(mine=LengthNormalised())
    found = objective.evaluate(Models(tiny_policy()), tiny_batch())
    logged = objective_quantities(found, objective.beta)
    logps = {"logps/chosen", "logps/rejected", "logps/accuracies"}
    assert logged.keys() == {"loss/total", "loss/mine", *logps}
    assert not any(name.startswith(("rewards", "kl")) for name in logged)


def test_a_loss_without_a_reference_keeps_the_contract():
    check_loss_component(LengthNormalised())


def test_a_reference_that_was_not_asked_for_is_missed():
    class Undeclared(DPOLoss):
        needs = frozenset()

    with pytest.raises(InputError, match=r"'reference\.logps' was not computed"):
        make_objective(mine=Undeclared()).evaluate(Models(tiny_policy()), tiny_batch())
    with pytest.raises(InputError, match=r"'reference\.logps' was not computed"):
        check_loss_component(Undeclared())


# Across the batch


class OverTheBatch(LossComponent):
    """Squared distances from the mean of the batch, one for each pair or one for all."""

    unit = "batch"
    quantities = ("spread", "total")

    def __init__(self, scalar=True):
        self.scalar = scalar

    def loss(self, context):
        totals = sequence_sum(context["chosen"]["policy.logps"], context["chosen"].mask)
        values = (totals - totals.mean()).square()
        quantities = {"spread": totals.std(correction=0), "total": totals}
        return LossValues(values.mean() if self.scalar else values, quantities)


@pytest.mark.parametrize("scalar", [True, False])
def test_a_loss_may_look_across_the_batch(models, scalar):
    objective, batch = make_objective(own=OverTheBatch(scalar)), tiny_batch()
    found = objective.evaluate(models, batch)
    totals = [sum(log_probs(models.policy, batch, row)) for row in range(3)]
    mean = sum(totals) / 3
    expected = [(total - mean) ** 2 for total in totals]
    if scalar:
        expected = [sum(expected) / 3] * 3
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-3)


def test_one_value_for_the_batch_has_the_gradient_of_the_mean_of_all(models):
    gradients = []
    for scalar in (True, False):
        models.policy.zero_grad()
        objective = make_objective(own=OverTheBatch(scalar))
        objective.evaluate(models, tiny_batch()).loss.mean().backward()
        gradients.append([parameter.grad.clone() for parameter in models.policy.parameters()])
    for one, each in zip(*gradients, strict=True):
        torch.testing.assert_close(one, each)
    assert any(bool(gradient.any()) for gradient in gradients[0])


def test_a_loss_across_the_batch_is_added_to_those_of_pairs(models):
    losses = {"own": OverTheBatch(), "plain": DPOLoss()}
    found = Objective(UniformImportance(), "mean", losses, {"own": 0.25}).evaluate(
        models, tiny_batch()
    )
    torch.testing.assert_close(found.loss, 0.25 * found.losses["own"] + found.losses["plain"])
    assert len(set(found.losses["own"].tolist())) == 1 < len(set(found.losses["plain"].tolist()))


def test_quantities_of_a_loss_stand_under_its_name(models):
    """One for the batch is told for every pair; all are data, and announced before the run."""
    objective = make_objective(own=OverTheBatch())
    found = objective.evaluate(models, tiny_batch())
    logged = objective_quantities(found, beta=0.1)
    chosen = found.context["chosen"]
    totals = sequence_sum(chosen["policy.logps"], chosen.mask).detach()
    assert logged["own/spread"].tolist() == pytest.approx([totals.std(correction=0).item()] * 3)
    assert torch.equal(logged["own/total"], totals)
    assert not any(value.requires_grad for value in found.quantities.values())
    assert logged.keys() <= set(quantity_names(objective.losses))


def test_a_quantity_that_is_not_named_is_refused(models):
    class Unnamed(OverTheBatch):
        quantities = ("total",)

    with pytest.raises(InputError, match=r"loss 'own' logs \['spread', 'total'\]"):
        make_objective(own=Unnamed()).evaluate(models, tiny_batch())


class SaysPair(OverTheBatch):
    unit = "pair"


class SaysGroup(LossComponent):
    """Compares a prompt's responses with those of all prompts."""

    unit = "group"

    def loss(self, context):
        rows = context.responses
        totals = sequence_sum(rows["policy.logps"], rows.mask)
        return rows.batch.by_prompt((totals - totals.mean()).square())[0].sum(-1)


@pytest.mark.parametrize("broken", [SaysPair(scalar=False), SaysGroup()])
def test_a_loss_that_looks_across_the_batch_and_does_not_say_so_is_found(broken):
    with pytest.raises(AssertionError, match="the loss of a prompt depends on other prompts"):
        check_loss_component(broken)


@pytest.mark.parametrize("scalar", [True, False])
def test_a_loss_across_the_batch_keeps_the_contract(scalar):
    check_loss_component(OverTheBatch(scalar))


# Along the run


class Scheduled(LossComponent):
    """DPO whose beta falls from 1 to 0.5, off before step 2."""

    needs = frozenset({"reference.logps"})

    def loss(self, context):
        chosen, rejected = (
            sequence_sum(context[role].log_ratios, context[role].mask)
            for role in ("chosen", "rejected")
        )
        beta = 1.0 - 0.5 * (context.share or 0.0)
        return float(context.step >= 2) * -logsigmoid(beta * (chosen - rejected))


@pytest.mark.parametrize(
    ("step", "share", "beta"),
    [(0, 0.0, None), (1, 0.5, None), (2, 0.5, 0.75), (9, 1.0, 0.5), (9, None, 1.0)],
)
def test_a_loss_knows_the_step_and_the_share_of_the_run(models, step, share, beta):
    objective, batch = make_objective(own=Scheduled()), tiny_batch()
    found = objective.evaluate(models, batch, step=step, share=share)
    expected = [0.0] * 3
    if beta is not None:
        expected = make_objective(plain=DPOLoss(beta)).evaluate(models, batch).loss.tolist()
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_run_that_is_not_told_stands_at_its_first_step_with_no_end_in_sight(models):
    context = make_objective(plain=DPOLoss()).evaluate(models, tiny_batch()).context
    assert (context.step, context.share) == (0, None)


# Groups of ranked responses


class PlackettLuce(LossComponent):
    """Negative log-likelihood of the order of ranked responses, best first."""

    unit = "group"
    needs = frozenset({"reference.logps"})

    def __init__(self, beta=0.1):
        self.beta = beta

    def loss(self, context):
        rows = context.responses
        rewards = self.beta * sequence_sum(rows.log_ratios, rows.mask)
        table, present = rows.batch.by_prompt(rewards)
        table = table.masked_fill(~present, -torch.inf)
        later = table.flip(-1).logcumsumexp(-1).flip(-1)
        return (later - table).masked_fill(~present, 0.0).sum(-1)


def test_a_listwise_loss_and_its_gradient_by_hand():
    """Likelihoods 3/6 * 2/3 * 1/1 of three responses, 1/4 of two, 1 of a single one.

    The gradient for a reward is the sum, over the choices it took part in, of its share of the
    choice, less one where it was taken: 3/6 - 1, 2/6 + 2/3 - 1, 1/6 + 1/3 + 1 - 1; 1/4 - 1, 3/4; 0.
    """
    groups = tiny_groups(most=3)
    assert groups.holders == ((0, 1, 2), (0, 1), (0,))
    # Rows: first responses of the prompts 0, 1, 2; second of 0, 1; third of 0.
    odds = torch.tensor([3.0, 1.0, 7.0, 2.0, 3.0, 1.0])
    policy = torch.zeros(groups.input_ids.shape)
    policy[torch.arange(6), groups.lengths - 1] = 2 * odds.log()
    policy.requires_grad_()
    values = {"policy.logps": policy, "reference.logps": torch.zeros_like(policy)}
    loss = PlackettLuce(beta=0.5).loss(LossContext(Results(groups, values)))
    assert loss.tolist() == pytest.approx([math.log(3), math.log(4), 0.0], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    of_rewards = torch.tensor([-1 / 2, -3 / 4, 0.0, 0.0, 3 / 4, 1 / 2])
    expected = 0.5 * of_rewards[:, None] * groups.response_mask
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_the_gradient_of_a_listwise_loss_equals_finite_differences():
    context = tiny_context(tiny_groups())
    batch, reference = context.responses.batch, context.responses["reference.logps"].double()

    def loss(policy):
        values = {"policy.logps": policy, "reference.logps": reference}
        return PlackettLuce(beta=0.7).loss(LossContext(Results(batch, values)))

    policy = context.responses["policy.logps"].detach().double().requires_grad_()
    assert torch.autograd.gradcheck(loss, policy)


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prompt"])
def test_a_listwise_loss_over_ragged_groups_equals_plain_python(models, layout):
    """Two to five ranked responses a prompt; each response alone and unpadded."""
    groups = tiny_groups(5)
    if layout != "padded":
        assert all(use_packed_attention(model) for model in models.own)
    models.layout = layout
    found = make_objective(list=PlackettLuce()).evaluate(models, groups)
    rewards = {}
    row = 0
    for held in groups.holders:
        for prompt in held:
            policy, reference = (sum(log_probs(model, groups, row)) for model in models.own)
            rewards.setdefault(prompt, []).append(0.1 * (policy - reference))
            row += 1
    for prompt, of_prompt in rewards.items():
        assert len(of_prompt) == 5 - prompt
        expected = sum(
            math.log(sum(math.exp(later) for later in of_prompt[place:])) - reward
            for place, reward in enumerate(of_prompt)
        )
        assert found.loss[prompt].item() == pytest.approx(expected, abs=1e-4)


def test_a_listwise_loss_tells_the_rewards_of_groups(models):
    """In its own beta, as means over the responses of a prompt."""
    groups, objective = tiny_groups(), make_objective(list=PlackettLuce(beta=0.4))
    found = objective.evaluate(models, groups)
    logged = objective_quantities(found, objective.beta)
    groups_have = {
        f"{kind}/{name}" for kind in ("logps", "rewards") for name in ("mean", "accuracies")
    }
    assert logged.keys() == {"loss/total", "loss/list", *groups_have}
    rows = found.context.responses
    sums = (0.4 * sequence_sum(rows.log_ratios, rows.mask)).tolist()
    means = [[sums[row] for row in own] for own in ([0, 4, 7, 9], [1, 5, 8], [2, 6], [3])]
    expected = [sum(own) / len(own) for own in means]
    assert logged["rewards/mean"].tolist() == pytest.approx(expected, rel=1e-5)


def test_of_pairs_a_listwise_loss_is_dpo(models):
    batch = tiny_batch()
    listwise, plain = (
        make_objective(own=loss).evaluate(models, batch).loss
        for loss in (PlackettLuce(beta=0.3), DPOLoss(beta=0.3))
    )
    torch.testing.assert_close(listwise, plain)


def test_a_listwise_loss_keeps_the_contract():
    check_loss_component(PlackettLuce())


def test_a_pairwise_loss_on_groups_says_what_is_missing(models):
    with pytest.raises(InputError, match="no responses of the role 'chosen'"):
        make_objective(plain=DPOLoss()).evaluate(models, tiny_groups())


# What the data bring along


class Rewarded(LossComponent):
    """Rewards times log-probs of the responses."""

    unit = "group"
    needs = frozenset({"rewards"})

    def loss(self, context):
        rows = context.responses
        sums = rows["rewards"] * sequence_sum(rows["policy.logps"], rows.mask)
        return -rows.batch.by_prompt(sums)[0].sum(-1)


class OffPolicy(LossComponent):
    """How much likelier responses are than where they come from."""

    unit = "group"
    needs = frozenset({"behaviour_logps"})

    def loss(self, context):
        rows = context.responses
        moved = sequence_sum(rows["policy.logps"] - rows["behaviour_logps"], rows.mask)
        return rows.batch.by_prompt(moved)[0].sum(-1)


def test_rewards_of_the_data_are_handed_on(models):
    """The rewards of tiny groups are 0, -1, -2, ... in the order of the responses."""
    groups = tiny_groups(most=3)
    found = make_objective(own=Rewarded()).evaluate(models, groups)
    sums = [sum(log_probs(models.policy, groups, row)) for row in range(6)]
    expected = [sums[3] + 2 * sums[5], sums[4], 0.0]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-4)
    assert found.context["response_2"]["rewards"].tolist() == [-1.0, -1.0]


def test_log_probs_of_the_data_are_handed_on(models):
    groups = tiny_groups(most=2)
    groups = dataclasses.replace(groups, behaviour_logps=-0.5 * groups.response_mask)
    found = make_objective(own=OffPolicy()).evaluate(models, groups)
    moved = [sum(logp + 0.5 for logp in log_probs(models.policy, groups, row)) for row in range(3)]
    assert found.loss.tolist() == pytest.approx([moved[0] + moved[2], moved[1]], rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "need", "given"),
    [
        (Rewarded, "rewards", "the columns score_chosen and score_rejected"),
        (OffPolicy, "behaviour_logps", "behaviour_logps of each response"),
        (KTOLoss, "labels", "the column label"),
    ],
)
def test_what_the_data_do_not_bring_along_is_missed(models, loss, need, given):
    groups = dataclasses.replace(tiny_groups(), rewards=None)
    with pytest.raises(InputError, match=rf"loss 'own' needs '{need}', .* give all rows {given}"):
        make_objective(own=loss()).evaluate(models, groups)


@pytest.mark.parametrize("loss", [Rewarded, OffPolicy])
def test_losses_on_what_the_data_bring_along_keep_the_contract(loss):
    check_loss_component(loss())
