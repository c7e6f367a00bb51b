"""The objective: what is computed, added up, and refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_tidpo.errors import InputError, NonFiniteError
from lit_tidpo.functional import scale_weights
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.gradient_log_ratio_importance import GradientLogRatioImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.random_importance import RandomImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.metrics.quantities import objective_quantities, quantity_names
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.objective import Objective
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_policy


def make_objective(losses=None, loss_weights=None, importance=None, scale="mean", models=()):
    return Objective(
        importance or HybridImportance(RandomImportance()),
        scale,
        losses or {"preference": WeightedDPOLoss()},
        loss_weights or {},
        models,
    )


@pytest.fixture
def models():
    return Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})


class Fixed(LossComponent):
    """Gives the losses that it was made with."""

    needs = frozenset({"reference.logps"})

    def __init__(self, losses):
        self.losses = losses

    def loss(self, context):
        return torch.tensor(self.losses) + 0 * context["chosen"]["policy.logps"].sum()


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

    def scores(self, results):
        if self.fail:
            raise self.fail
        return torch.ones_like(results["policy.logps"])


# What is refused when it is built


def test_unknown_needs_are_refused_and_the_known_ones_listed():
    with pytest.raises(InputError, match=r"loss 'mine' needs 'reference\.kI'.*'kl'"):
        make_objective({"mine": Asking({"reference.kI", "reference.logps"})})
    with pytest.raises(InputError, match=r"importance Estimator needs 'policy\.gradients'"):
        make_objective(importance=Estimator({"policy.gradients"}))
    with pytest.raises(InputError, match=r"needs 'weight'; .*'weights'"):
        make_objective({"mine": Asking({"weight"})})


def test_models_that_the_run_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"'teacher\.logps', but .* add model\.models\.teacher"):
        make_objective(importance=Estimator({"teacher.logps"}))
    make_objective(importance=Estimator({"teacher.logps"}), models=("teacher",))
    with pytest.raises(InputError, match=r"did you mean 'reference'\? Otherwise add model\.models"):
        make_objective({"mine": Asking({"refrence.logps"})})


@pytest.mark.parametrize("estimator", [GradientImportance, AttentionImportance])
def test_a_misspelt_model_of_an_estimator_is_refused(estimator):
    with pytest.raises(InputError, match=r"the models \['policy', 'reference'\] alone: .*\.ref$"):
        make_objective(importance=estimator(model="ref"))


def test_a_divergence_of_the_policy_from_itself_is_refused():
    with pytest.raises(InputError, match=r"such as 'reference\.kl'"):
        make_objective({"mine": Asking({"policy.kl"})})


def test_parameters_that_nothing_would_train_are_refused():
    class Mask(nn.Module, Estimator):
        def __init__(self):
            super().__init__()
            Estimator.__init__(self)
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(InputError, match="Mask has parameters to train, but its scores are data"):
        make_objective(importance=HybridImportance(Mask()))
    frozen = Mask()
    frozen.gain.requires_grad_(False)
    make_objective(importance=frozen)


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


# What is computed


def test_losses_are_added_with_their_factors_and_logged_by_name(models):
    """L11: each component under its own name, unweighted, and the total."""
    losses = {"one": Fixed([1.0, 2.0, 3.0]), "two": Fixed([10.0, 20.0, 30.0])}
    objective = make_objective(losses, {"two": 0.5})
    found = objective.evaluate(models, tiny_batch())
    assert found.loss.tolist() == [6.0, 12.0, 18.0]
    logged = objective_quantities(found, beta=0.1)
    assert logged["loss/one"].tolist() == [1.0, 2.0, 3.0]
    assert logged["loss/two"].tolist() == [10.0, 20.0, 30.0]
    assert logged["loss/total"].tolist() == [6.0, 12.0, 18.0]
    assert logged.keys() <= set(quantity_names(objective.losses))


def test_a_component_with_factor_zero_is_not_computed(models):
    losses = {"preference": DPOLoss(), "off": Asking({"reference.kl", "weights", "anchor"})}
    losses["off"].loss = None  # calling it would fail
    objective = make_objective(losses, {"off": 0.0})
    assert objective.needs == {"reference.logps"}
    found = objective.evaluate(models, tiny_batch())
    assert found.losses.keys() == {"preference"}
    assert found.weights is None


def test_rewards_are_logged_wherever_there_is_a_reference(models):
    objective = make_objective({"mine": Asking(())})
    assert objective.needs == frozenset()
    found = objective.evaluate(models, tiny_batch())
    assert bool(objective_quantities(found, beta=0.1)["rewards/margins"].all())


def test_scores_from_inside_the_graph_are_used_as_data(models):
    """W1: neither the weights nor the raw scores that are told carry a gradient."""

    class Surprisal(Estimator):
        def scores(self, results):
            return -results["policy.logps"]

    found = make_objective(importance=Surprisal()).evaluate(models, tiny_batch())
    assert not found.weights.requires_grad
    assert not any(part["scores"].requires_grad for part in found.context.values())


def test_each_model_runs_once_for_everything_that_is_asked_for(models):
    calls = []
    for name, model in zip(("policy", "reference"), models.own, strict=True):
        model.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    losses = {"preference": WeightedDPOLoss(), "plain": DPOLoss()}
    objective = make_objective(losses, importance=GradientLogRatioImportance())
    objective.evaluate(models, tiny_batch())
    assert sorted(calls) == ["policy", "reference"]


def test_an_estimator_runs_only_where_a_loss_asks_for_weights(models):
    broken = Estimator({"policy.attentions"}, fail=RuntimeError("must not run"))
    objective = make_objective({"plain": DPOLoss()}, importance=broken)
    assert objective.importance_needs == frozenset()
    assert objective.evaluate(models, tiny_batch()).weights is None


def test_weights_from_an_earlier_step_are_used_as_they_are(models):
    batch = tiny_batch()
    broken = make_objective(importance=Estimator(fail=RuntimeError("must not run")))
    ones = batch.response_mask.float()
    found = broken.evaluate(models, batch, known={"weights": ones})
    assert torch.equal(found.weights, ones)
    uniform = make_objective(importance=UniformImportance())
    torch.testing.assert_close(found.loss, uniform.evaluate(models, batch).loss)
    weighted = make_objective().evaluate(models, batch)
    assert (weighted.loss - found.loss).abs().max() > 1e-4


def test_weights_are_the_scaled_scores_of_the_estimator(models):
    batch, importance = tiny_batch(), RandomImportance(seed=4)
    found = make_objective(importance=importance, scale="sum").evaluate(models, batch)
    scores = importance.scores(Results(batch, {"policy.logps": torch.zeros(batch.input_ids.shape)}))
    assert torch.equal(found.weights, scale_weights(scores, batch.response_mask, "sum"))
    for role in ("chosen", "rejected"):
        rows, results = batch.rows(role), found.context[role]
        assert torch.equal(results["weights"], found.weights[rows])
        assert torch.equal(results["scores"], scores[rows])
        assert torch.equal(results.mask, batch.response_mask[rows])
    assert not found.weights.requires_grad


def test_signed_weights_may_keep_their_scale(models):
    class Signed(Estimator):
        signed = True

        def scores(self, results):
            return results.log_ratios

    importance = Signed({"reference.logps"})
    found = make_objective(importance=importance, scale="none").evaluate(models, tiny_batch())
    assert torch.equal(found.weights, found.context.responses.log_ratios.detach())
    assert found.weights.min() < 0 < found.weights.max()


def test_an_estimator_may_ask_for_a_third_model(models):
    class Contrast(Estimator):
        def scores(self, results):
            return (results["teacher.logps"] - results["reference.logps"]).abs()

    importance = Contrast({"teacher.logps", "reference.logps"})
    teacher = tiny_policy(seed=2)
    models.others["teacher"] = FrozenModel(teacher)
    objective = make_objective(importance=importance, models=("teacher",))
    assert objective.models == {"teacher", "reference"}
    found, batch = objective.evaluate(models, tiny_batch()), tiny_batch()
    alone = Models(teacher).run([(batch, frozenset())])[0]["policy.logps"]
    torch.testing.assert_close(found.context.responses["teacher.logps"], alone)


def test_policy_equal_to_reference_costs_ln_2_with_zero_rewards_and_kl():
    """L1: triplet off, importance weights on; to the tolerance of fp32."""
    policy = tiny_policy()
    objective = make_objective(importance=GradientImportance())
    models = Models(policy, {"reference": FrozenModel.copy_of(policy)})
    found = objective.evaluate(models, tiny_batch())
    logged = objective_quantities(found, beta=0.1)
    assert logged["loss/total"].tolist() == pytest.approx([math.log(2)] * 3, abs=1e-6)
    for name in ("rewards/{}", "rewards/weighted_{}", "kl/{}"):
        for role in ("chosen", "rejected"):
            assert logged[name.format(role)].abs().max() < 1e-5


def test_gradients_reach_the_policy_and_not_the_reference(models):
    policy, reference = models.own
    objective = make_objective(importance=GradientImportance(model="reference"))
    objective.evaluate(models, tiny_batch()).loss.mean().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_an_anchor_is_measured_by_its_log_ratios_alone(models):
    batch = tiny_batch()
    anchors = tiny_batch(seed=5, weights=False).role("chosen")
    anchors.roles = ("anchor",)
    losses = {"preference": WeightedDPOLoss(), "triplet": TripletLoss()}
    found = make_objective(losses).evaluate(models, batch, anchors)
    anchor = found.context["anchor"]
    assert anchor.keys() == {"policy.logps", "reference.logps"}
    assert anchor.log_ratios.requires_grad
    assert torch.equal(anchor.mask, anchors.response_mask)


def test_what_is_explained_always_has_weights_and_no_graph(models):
    objective = make_objective({"plain": DPOLoss()}, importance=GradientImportance())
    prediction = objective.explain(models, tiny_batch())
    names = {"policy.logps", "reference.logps", "reference.kl", "weights", "scores"}
    assert prediction.values.keys() == names
    assert not any(value.requires_grad for value in prediction.values.values())
    for role in ("chosen", "rejected"):
        results = prediction.of_role(role)
        means = results["weights"].sum(-1) / results.mask.sum(-1)
        torch.testing.assert_close(means, torch.ones(3), atol=1e-6, rtol=0)


def test_without_a_reference_what_is_explained_is_of_the_policy_alone():
    objective = make_objective({"mine": Asking(())}, importance=GradientImportance())
    prediction = objective.explain(Models(tiny_policy()), tiny_batch())
    assert prediction.values.keys() == {"policy.logps", "weights", "scores"}


# What is refused when it is computed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_raises_and_names_the_pairs(models, bad):
    """L7: by their position in the data set; it never becomes zero."""
    batch = tiny_batch()
    batch.index = torch.tensor([17, 230, 5])
    losses = {"fine": DPOLoss(), "bad": Fixed([0.5, bad, bad])}
    with pytest.raises(NonFiniteError, match=r"loss 'bad'.*pairs \[230, 5\] of the data set"):
        make_objective(losses).evaluate(models, batch)


def test_a_supervised_log_prob_that_is_not_finite_raises(models):
    """L7: from broken weights of the policy up to the loss."""
    with torch.no_grad():
        models.policy.lm_head.weight[5] = math.nan
    objective = make_objective({"plain": DPOLoss()})
    with pytest.raises(NonFiniteError, match=r"loss 'plain'.*pairs \[0, 1, 2\]"):
        objective.evaluate(models, tiny_batch())


@pytest.mark.parametrize("losses", [[1.0], [1.0] * 6])
def test_a_loss_of_another_shape_is_refused(models, losses):
    with pytest.raises(InputError, match=r"loss 'mine' has the shape \(\d,\); expected \(3,\)"):
        make_objective({"mine": Fixed(losses)}).evaluate(models, tiny_batch())


def test_a_scalar_loss_is_refused(models):
    with pytest.raises(InputError, match=r"loss 'mine' has the shape \(\); expected \(3,\)"):
        make_objective({"mine": Fixed(1.0)}).evaluate(models, tiny_batch())


def test_an_estimator_that_fails_fails_the_step(models):
    """W7: its own error goes through."""
    objective = make_objective(importance=Estimator(fail=ZeroDivisionError("broken")))
    with pytest.raises(ZeroDivisionError, match="broken"):
        objective.evaluate(models, tiny_batch())


def test_a_loss_brings_its_own_factor():
    """The triplet loss has gamma 0.1, whether it is there by default or by name."""
    losses = {"preference": WeightedDPOLoss(), "mine": TripletLoss()}
    objective = Objective(UniformImportance(), "mean", losses, {})
    assert objective.factors == {"preference": 1.0, "mine": 0.1}
    objective = Objective(UniformImportance(), "mean", losses, {"mine": 0.5})
    assert objective.factors == {"preference": 1.0, "mine": 0.5}


def test_rewards_are_told_in_the_beta_of_the_first_loss_that_has_one():
    losses = {"mine": TripletLoss(), "plain": DPOLoss(beta=0.3), "other": DPOLoss(beta=0.5)}
    assert make_objective(losses).beta == 0.3
    assert make_objective({"mine": TripletLoss()}).beta == 1.0
