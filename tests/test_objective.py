"""The objective: what is computed, added up, and refused."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.contracts import ImportanceEstimator, LossComponent
from lit_tidpo.errors import InputError, NonFiniteError
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.random_importance import RandomImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.metrics.quantities import outcome_quantities, quantity_names
from lit_tidpo.models.reference import Reference
from lit_tidpo.objective import Objective
from lit_tidpo.structures import Forward, ModelTrace
from lit_tidpo.testing import tiny_batch, tiny_policy


def make_objective(losses=None, loss_weights=None, importance=None, weighting=None, beta=0.1):
    return Objective(
        importance or RandomImportance(),
        weighting or Weighting(),
        losses or {"preference": WeightedDPOLoss()},
        loss_weights or {},
        beta,
    )


@pytest.fixture
def models():
    return tiny_policy(), Reference(tiny_policy(seed=1))


class Fixed(LossComponent):
    """Gives the losses that it was made with."""

    needs = frozenset({"reference.logps"})

    def __init__(self, losses):
        self.losses = losses

    def loss(self, scores, beta):
        return torch.tensor(self.losses) + 0 * scores["chosen"].policy_logps.sum()


class Asking(Fixed):
    def __init__(self, needs):
        super().__init__([0.0] * 3)
        self._needs = frozenset(needs)

    @property
    def needs(self):
        return self._needs


class Estimator(ImportanceEstimator):
    def __init__(self, needs=(), fail=None):
        self._needs = frozenset(needs)
        self.fail = fail

    @property
    def needs(self):
        return self._needs

    def scores(self, forward):
        if self.fail:
            raise self.fail
        return torch.ones_like(forward.policy.logps)


# What is refused when it is built


def test_unknown_needs_are_refused_and_the_known_ones_listed():
    with pytest.raises(InputError, match=r"loss 'mine' needs \['kI'\].*'kl'"):
        make_objective({"mine": Asking({"kI", "reference.logps"})})
    with pytest.raises(InputError, match=r"importance Estimator needs \['policy\.gradients'\]"):
        make_objective(importance=Estimator({"policy.gradients"}))


@pytest.mark.parametrize("need", ["weights", "anchor"])
def test_an_estimator_cannot_ask_for_what_is_made_of_its_own_scores(need):
    with pytest.raises(InputError, match="which only a loss can ask for"):
        make_objective(importance=Estimator({need}))


def test_factors_of_unknown_losses_are_refused():
    with pytest.raises(InputError, match=r"loss_weights names \['tripplet'\].*\['preference'\]"):
        make_objective(loss_weights={"tripplet": 0.1})


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match="every loss has the weight 0"):
        make_objective(loss_weights={"preference": 0.0})


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(InputError, match="expected a finite number above 0"):
        make_objective(beta=beta)


# What is computed


def test_l11_losses_are_added_with_their_factors_and_logged_by_name(models):
    """L11: each component under its own name, unweighted, and the total."""
    losses = {"one": Fixed([1.0, 2.0, 3.0]), "two": Fixed([10.0, 20.0, 30.0])}
    objective = make_objective(losses, {"two": 0.5})
    outcome = objective.evaluate(*models, tiny_batch())
    assert outcome.loss.tolist() == [6.0, 12.0, 18.0]
    logged = outcome_quantities(outcome, beta=0.1)
    assert logged["loss/one"].tolist() == [1.0, 2.0, 3.0]
    assert logged["loss/two"].tolist() == [10.0, 20.0, 30.0]
    assert logged["loss/total"].tolist() == [6.0, 12.0, 18.0]
    assert logged.keys() <= set(quantity_names(objective.losses))


def test_a_component_with_factor_zero_is_not_computed(models):
    losses = {"preference": DPOLoss(), "off": Asking({"kl", "weights", "anchor"})}
    losses["off"].loss = None  # calling it would fail
    objective = make_objective(losses, {"off": 0.0})
    assert objective.needs == {"reference.logps"}
    outcome = objective.evaluate(*models, tiny_batch())
    assert outcome.components.keys() == {"preference"}
    assert outcome.weights is None


def test_rewards_need_the_reference_whether_or_not_a_loss_does(models):
    objective = make_objective({"mine": Asking(())})
    assert objective.needs == {"reference.logps"}
    outcome = objective.evaluate(*models, tiny_batch())
    assert bool(outcome_quantities(outcome, beta=0.1)["rewards/margins"].all())


def test_w1_scores_from_inside_the_graph_are_used_as_data(models):
    """W1: neither the weights nor the raw scores that are told carry a gradient."""

    class Surprisal(Estimator):
        def scores(self, forward):
            return -forward.policy.logps

    outcome = make_objective(importance=Surprisal()).evaluate(*models, tiny_batch())
    assert not outcome.weights.requires_grad
    assert not any(part.raw_scores.requires_grad for part in outcome.scores.values())


def test_each_model_runs_once_for_everything_that_is_asked_for(models):
    policy, reference = models
    calls = []
    policy.register_forward_pre_hook(lambda *_: calls.append("policy"))
    reference.model.register_forward_pre_hook(lambda *_: calls.append("reference"))
    losses = {"preference": WeightedDPOLoss(), "plain": DPOLoss()}
    objective = make_objective(losses, importance=GradientImportance("log_ratio"))
    objective.evaluate(policy, reference, tiny_batch())
    assert sorted(calls) == ["policy", "reference"]


def test_an_estimator_runs_only_where_a_loss_asks_for_weights(models):
    broken = Estimator({"policy.attentions"}, fail=RuntimeError("must not run"))
    objective = make_objective({"plain": DPOLoss()}, importance=broken)
    assert objective.importance_needs() == frozenset()
    assert objective.evaluate(*models, tiny_batch()).weights is None


def test_weights_from_an_earlier_step_are_used_as_they_are(models):
    batch = tiny_batch()
    broken = make_objective(importance=Estimator(fail=RuntimeError("must not run")))
    ones = batch.response_mask.float()
    outcome = broken.evaluate(*models, batch, weights=ones)
    assert torch.equal(outcome.weights, ones)
    uniform = make_objective(importance=UniformImportance(), weighting=Weighting(mix=1.0))
    torch.testing.assert_close(outcome.loss, uniform.evaluate(*models, batch).loss)
    weighted = make_objective().evaluate(*models, batch)
    assert (weighted.loss - outcome.loss).abs().max() > 1e-4


def test_weights_are_those_of_the_estimator_and_the_weighting(models):
    batch, importance, weighting = tiny_batch(), RandomImportance(seed=4), Weighting(mix=0.3)
    outcome = make_objective(importance=importance, weighting=weighting).evaluate(*models, batch)
    raw = importance.scores(Forward(batch, ModelTrace(torch.zeros(batch.input_ids.shape))))
    assert torch.equal(outcome.weights, weighting.weights(raw, batch))
    for role in ("chosen", "rejected"):
        rows = batch.rows(role)
        assert torch.equal(outcome.scores[role].weights, outcome.weights[rows])
        assert torch.equal(outcome.scores[role].raw_scores, raw[rows])
        assert torch.equal(outcome.scores[role].mask, batch.response_mask[rows])
    assert not outcome.weights.requires_grad


def test_l1_policy_equal_to_reference_costs_ln_2_with_zero_rewards_and_kl():
    """L1: triplet off, importance weights on; to the tolerance of fp32."""
    policy = tiny_policy()
    objective = make_objective(importance=GradientImportance())
    outcome = objective.evaluate(policy, Reference.of(policy), tiny_batch())
    logged = outcome_quantities(outcome, beta=0.1)
    assert logged["loss/total"].tolist() == pytest.approx([math.log(2)] * 3, abs=1e-6)
    for name in ("rewards/{}", "rewards/weighted_{}", "kl/{}"):
        for role in ("chosen", "rejected"):
            assert logged[name.format(role)].abs().max() < 1e-5


def test_gradients_reach_the_policy_and_not_the_reference(models):
    policy, reference = models
    objective = make_objective(importance=GradientImportance(model="reference"))
    objective.evaluate(policy, reference, tiny_batch()).loss.mean().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert all(parameter.grad is None for parameter in reference.model.parameters())


def test_an_anchor_is_measured_by_its_log_ratios_alone(models):
    batch = tiny_batch()
    anchors = tiny_batch(seed=5, weights=False).role("chosen")
    anchors.roles = ("anchor",)
    losses = {"preference": WeightedDPOLoss(), "triplet": TripletLoss()}
    outcome = make_objective(losses).evaluate(*models, batch, anchors)
    anchor = outcome.scores["anchor"]
    assert (anchor.kl, anchor.weights, anchor.raw_scores) == (None, None, None)
    assert anchor.log_ratios.requires_grad
    assert torch.equal(anchor.mask, anchors.response_mask)


def test_what_is_explained_always_has_weights_and_no_graph(models):
    objective = make_objective({"plain": DPOLoss()}, importance=GradientImportance())
    prediction = objective.explain(*models, tiny_batch())
    for tokens in prediction.scores.values():
        fields = (
            tokens.policy_logps,
            tokens.reference_logps,
            tokens.kl,
            tokens.weights,
            tokens.raw_scores,
        )
        assert not any(field.requires_grad for field in fields)
        means = tokens.weights.sum(-1) / tokens.mask.sum(-1)
        torch.testing.assert_close(means, torch.ones(3), atol=1e-6, rtol=0)


# What is refused when it is computed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_l7_a_loss_that_is_not_finite_raises_and_names_the_pairs(models, bad):
    """L7: by their position in the data set; it never becomes zero."""
    batch = tiny_batch()
    batch.index = torch.tensor([17, 230, 5])
    losses = {"fine": DPOLoss(), "bad": Fixed([0.5, bad, bad])}
    with pytest.raises(NonFiniteError, match=r"loss 'bad'.*pairs \[230, 5\] of the data set"):
        make_objective(losses).evaluate(*models, batch)


def test_l7_a_supervised_log_prob_that_is_not_finite_raises(models):
    """L7: from broken weights of the policy up to the loss."""
    policy, reference = models
    with torch.no_grad():
        policy.lm_head.weight[5] = math.nan
    objective = make_objective({"plain": DPOLoss()})
    with pytest.raises(NonFiniteError, match=r"loss 'plain'.*pairs \[0, 1, 2\]"):
        objective.evaluate(policy, reference, tiny_batch())


@pytest.mark.parametrize("losses", [[1.0], [1.0] * 6])
def test_a_loss_of_another_shape_is_refused(models, losses):
    with pytest.raises(InputError, match=r"loss 'mine' has the shape \(\d,\); expected \(3,\)"):
        make_objective({"mine": Fixed(losses)}).evaluate(*models, tiny_batch())


def test_a_scalar_loss_is_refused(models):
    with pytest.raises(InputError, match=r"loss 'mine' has the shape \(\); expected \(3,\)"):
        make_objective({"mine": Fixed(1.0)}).evaluate(*models, tiny_batch())


def test_w7_an_estimator_that_fails_fails_the_step(models):
    """W7: its own error goes through."""
    objective = make_objective(importance=Estimator(fail=ZeroDivisionError("broken")))
    with pytest.raises(ZeroDivisionError, match="broken"):
        objective.evaluate(*models, tiny_batch())


def test_a_loss_brings_its_own_factor():
    """The triplet loss has gamma 0.1, whether it is there by default or by name."""
    losses = {"preference": WeightedDPOLoss(), "mine": TripletLoss()}
    objective = Objective(UniformImportance(), Weighting(), losses, {}, 0.1)
    assert objective.factors == {"preference": 1.0, "mine": 0.1}
    objective = Objective(UniformImportance(), Weighting(), losses, {"mine": 0.5}, 0.1)
    assert objective.factors == {"preference": 1.0, "mine": 0.5}
