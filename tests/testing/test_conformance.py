"""The conformance checks fail on plugins that break their contract, each for its own reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.functional import sequence_sum
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.base import LossComponent, LossValues
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.testing import (
    check_importance_estimator,
    check_loss_component,
    conformance,
    tiny_policy,
)

MODELS = []  # the policy and the reference that a check makes: what a careless plugin gets hold of


@pytest.fixture(autouse=True)
def _seen_models(monkeypatch):
    def seen(*arguments, **options):
        MODELS.append(tiny_policy(*arguments, **options))
        return MODELS[-1]

    monkeypatch.setattr(conformance, "tiny_policy", seen)
    yield
    MODELS.clear()


# Importance estimators


class Surprisal(ImportanceEstimator):
    """A sound one, that the broken ones derive from."""

    needs = frozenset({"policy.embeddings"})

    def scores(self, results):
        return -results["policy.logps"]


class WrongShape(Surprisal):
    def scores(self, results):
        return super().scores(results)[:, 1:]


class Negative(Surprisal):
    def scores(self, results):
        return results["policy.logps"]


class NotANumber(Surprisal):
    def scores(self, results):
        return super().scores(results) * torch.nan


class Infinite(Surprisal):
    def scores(self, results):
        return super().scores(results) + torch.inf


class DependsOnBatchMates(Surprisal):
    def scores(self, results):
        scores = super().scores(results)
        return scores / scores.mean()


class DependsOnTheLargestOfTheBatch(Surprisal):
    def scores(self, results):
        scores = super().scores(results)
        return scores / scores.max()


class TinyAndDependsOnBatchMates(DependsOnBatchMates):
    def scores(self, results):
        return 1e-5 * super().scores(results)


class DependsOnPadding(Surprisal):
    def scores(self, results):
        return super().scores(results) + results.batch.input_ids.shape[1]


class LeavesGradients(Surprisal):
    def scores(self, results):
        results["policy.logps"].sum().backward(retain_graph=True)
        return super().scores(results)


class ClearsGradients(Surprisal):
    def scores(self, results):
        MODELS[0].model.embed_tokens.weight.grad = None
        return super().scores(results)


class ChangesParameters(Surprisal):
    def scores(self, results):
        MODELS[0].model.embed_tokens.weight.data.add_(1.0)
        return super().scores(results)


class FreezesParameters(Surprisal):
    def scores(self, results):
        MODELS[0].model.embed_tokens.requires_grad_(False)
        return super().scores(results)


class ChangesMode(Surprisal):
    def scores(self, results):
        MODELS[0].eval()
        return super().scores(results)


class ChangesTheModeOfTheReference(Surprisal):
    def scores(self, results):
        MODELS[1].train()
        return super().scores(results)


class ChangesTheCacheSetting(Surprisal):
    def scores(self, results):
        MODELS[0].config.use_cache = not MODELS[0].config.use_cache
        return super().scores(results)


class LeavesAHook(Surprisal):
    def scores(self, results):
        MODELS[0].model.norm.register_forward_hook(lambda *_: None)
        return super().scores(results)


class DrawsFromTheGlobalGenerator(Surprisal):
    def scores(self, results):
        torch.rand(1)
        return super().scores(results)


class ForgetsItsArgument(Surprisal):
    def __init__(self, power=2.0):
        self._power = power


class AsksForTheUnknown(Surprisal):
    needs = frozenset({"policy.gradients"})


def test_a_sound_estimator_passes():
    check_importance_estimator(Surprisal())


class Learned(nn.Module, ImportanceEstimator):
    learned = True
    needs = frozenset({"policy.entropy"})

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def scores(self, results):
        return self.gain.exp() * results["policy.entropy"].detach()


class LearnedButDetached(Learned):
    def scores(self, results):
        return super().scores(results).detach()


class LearnedButUnused(Learned):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1), requires_grad=False)


class LearnedUnsaid(Learned):
    learned = False


class LearnedInPart(Learned):
    """Its graph is the policy's alone."""

    needs = frozenset({"policy.entropy"})

    def scores(self, results):
        return results["policy.entropy"]


class LearnedWithoutAModule(Surprisal):
    learned = True


class LooksAtNothingKnown(Surprisal):
    looks_at = "grp"


class NeedsAString(ImportanceEstimator):
    needs = "reference.logps"

    def scores(self, results):
        return -results["policy.logps"]


class HoldsWithoutDeclaring(ImportanceEstimator):
    def __init__(self):
        self.part = Surprisal()

    def scores(self, results):
        return checked_scores(self.part, results)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (DependsOnBatchMates, "depend on other rows or on padding"),
        (DependsOnTheLargestOfTheBatch, "depend on other rows or on padding"),
        (TinyAndDependsOnBatchMates, "depend on other rows or on padding"),
        (DependsOnPadding, "depend on other rows or on padding"),
        (LeavesGradients, r"changes \['policy\..*\.grad'"),
        (ClearsGradients, r"changes \['policy\..*embed_tokens\.weight\.grad'\]"),
        (ChangesParameters, r"changes \['policy\..*embed_tokens\.weight'\]"),
        (FreezesParameters, r"embed_tokens\.weight\.requires_grad'\]"),
        (ChangesMode, r"changes \['policy\..*training'"),
        (ChangesTheModeOfTheReference, r"changes \['reference\..*training'"),
        (ChangesTheCacheSetting, r"changes \['policy\.config'\]"),
        (LeavesAHook, r"changes \['policy\.model\.norm\.hooks'\]"),
        (DrawsFromTheGlobalGenerator, "draws from the global generator"),
    ],
)
def test_a_broken_estimator_is_told_what_does_not_hold(broken, reason):
    """W1, W3, N5: what plugins are held to is what the built-in estimators are held to."""
    with pytest.raises(AssertionError, match=reason):
        check_importance_estimator(broken())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (ForgetsItsArgument, r"does not keep its arguments \['power'\]"),
        (AsksForTheUnknown, "needs 'policy.gradients'"),
        (WrongShape, r"WrongShape have the shape \(6, 15\); expected \(6, 16\)"),
        (Negative, "Negative must not be negative"),
        (NotANumber, "NaN or infinite"),
        (Infinite, "NaN or infinite"),
        (LearnedButDetached, "its scores have no graph"),
        (LearnedButUnused, "says learned = True, but has no parameters to train"),
        (LearnedUnsaid, "has parameters to train, but its scores are data"),
        (LearnedWithoutAModule, "derive it from torch.nn.Module"),
        (LooksAtNothingKnown, r"LooksAtNothingKnown.looks_at='grp'"),
        (NeedsAString, r"needs='reference.logps': expected a frozenset"),
        (
            HoldsWithoutDeclaring,
            r"without declaring its \['policy.embeddings'\].*CombinedImportance",
        ),
    ],
)
def test_an_estimator_that_no_module_would_take_is_refused(broken, reason):
    with pytest.raises(InputError, match=reason):
        check_importance_estimator(broken())


class Difference(CombinedImportance):
    """What one estimator scores more than another: signed."""

    signed = True

    def __init__(self, one, other):
        self.one = one
        self.other = other

    def scores(self, results):
        return checked_scores(self.one, results) - checked_scores(self.other, results)


class ShareOfTheGroup(Surprisal):
    """Surprisal relative to that of the partner response."""

    looks_at = "group"

    def scores(self, results):
        total = sequence_sum(super().scores(results), results.mask)
        table, _ = results.batch.by_prompt(total)
        return super().scores(results) / results.batch.of_rows(table.sum(-1)).unsqueeze(-1)


class ShareOfTheGroupUnsaid(ShareOfTheGroup):
    looks_at = "row"


class Teacher(ImportanceEstimator):
    needs = frozenset({"teacher.logps", "rewards", "behaviour_logps"})

    def scores(self, results):
        return -results["teacher.logps"] * results["rewards"].unsqueeze(-1)


@pytest.mark.parametrize(
    "estimator",
    [
        Difference(GradientImportance(), UniformImportance()),
        ShareOfTheGroup(),
        Teacher(),
        Learned(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_other_kinds_of_estimators_pass(estimator):
    check_importance_estimator(estimator)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (ShareOfTheGroupUnsaid, "depend on other rows or on padding"),
        (LearnedInPart, "no parameter gets a gradient of its scores"),
    ],
)
def test_estimators_that_are_not_what_they_say_are_told_so(broken, reason):
    with pytest.raises(AssertionError, match=reason):
        check_importance_estimator(broken())


def test_a_combined_estimator_is_what_its_parts_are():
    combined = Difference(ShareOfTheGroup(), Teacher())
    assert combined.needs == ShareOfTheGroup.needs | Teacher.needs
    assert combined.looks_at == "group"
    assert not combined.learned
    assert Difference(Learned(), Teacher()).learned


# Loss components


class Margin(LossComponent):
    """A sound one, that the broken ones derive from."""

    needs = frozenset({"reference.logps"})

    def margins(self, context):
        sums = [
            context[role].log_ratios.masked_fill(~context[role].mask, 0.0).sum(-1)
            for role in ("chosen", "rejected")
        ]
        return sums[0] - sums[1]

    def loss(self, context):
        return (1 - 0.1 * self.margins(context)).clamp(min=0)


class Averaged(Margin):
    def loss(self, context):
        return super().loss(context).mean()


class NotFinite(Margin):
    def loss(self, context):
        return super().loss(context) * torch.nan


class WithoutGradient(Margin):
    def loss(self, context):
        return super().loss(context).detach().requires_grad_()


class Detached(Margin):
    def loss(self, context):
        return super().loss(context).detach()


class InfiniteGradient(Margin):
    def loss(self, context):
        return super().loss(context) + (0 * self.margins(context)).sqrt()


class CentredOverTheBatch(Margin):
    def loss(self, context):
        loss = super().loss(context)
        return loss - loss.mean()


class MasksByMultiplication(Margin):
    def margins(self, context):
        sums = [
            (context[role].log_ratios * context[role].mask).sum(-1)
            for role in ("chosen", "rejected")
        ]
        return sums[0] - sums[1]


class CountsPadding(Margin):
    needs = frozenset({"reference.logps", "weights"})

    def loss(self, context):
        return super().loss(context) + context["chosen"]["weights"].nan_to_num(3.0).sum(-1)


class ForgetsItsMargin(Margin):
    def __init__(self, margin=1.0):
        pass


class WritesIntoItsInputs(Margin):
    needs = frozenset({"reference.logps", "weights"})

    def loss(self, context):
        loss = super().loss(context)
        context["chosen"]["weights"].mul_(0.5)
        return loss


def test_a_sound_component_passes():
    check_loss_component(Margin())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (NotFinite, "loss is NaN or infinite"),
        (WithoutGradient, "no value of the policy gets a gradient"),
        (InfiniteGradient, "gradient not finite"),
        (CentredOverTheBatch, "the loss of a prompt depends on other prompts"),
        (MasksByMultiplication, "values off the response count"),
        (CountsPadding, "values off the response count"),
        (WritesIntoItsInputs, r"changes \['weights'\] of 'chosen'"),
    ],
)
def test_a_broken_component_is_told_what_does_not_hold(broken, reason):
    with pytest.raises(AssertionError, match=reason):
        check_loss_component(broken())


class PlackettLuce(LossComponent):
    """Negative log-likelihood of the order of ranked responses, best first."""

    unit = "group"

    def loss(self, context):
        rows = context.responses
        scores, present = rows.batch.by_prompt(sequence_sum(rows["policy.logps"], rows.mask))
        scores = scores.masked_fill(~present, -torch.inf)
        later = scores.flip(-1).logcumsumexp(-1).flip(-1)
        return (later - scores).masked_fill(~present, 0.0).sum(-1)


class WithAQuantity(Margin):
    quantities = ("spread",)

    def loss(self, context):
        return LossValues(super().loss(context), {"spread": self.margins(context).mean()})


class WithAnUnnamedQuantity(WithAQuantity):
    quantities = ()


class OverTheBatch(CentredOverTheBatch):
    unit = "batch"


class OneForTheBatch(Averaged):
    unit = "batch"


@pytest.mark.parametrize("component", [PlackettLuce, WithAQuantity, OverTheBatch, OneForTheBatch])
def test_other_kinds_of_components_pass(component):
    check_loss_component(component())


class WithAQuantityLeftOut(Margin):
    quantities = ("spread",)


class QuantitiesOfAString(Margin):
    quantities = "spread"


class UnitOfNoKind(Margin):
    unit = "bacth"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Averaged, r"'Averaged' has the shape \(\); expected \(3,\)"),
        (Detached, "'Detached' has no graph"),
        (WithAnUnnamedQuantity, r"logs \['spread'\], but .* names \[\]"),
        (WithAQuantityLeftOut, r"logs \[\], but .* names \['spread'\]"),
        (QuantitiesOfAString, r"quantities='spread': expected a tuple"),
        (UnitOfNoKind, "UnitOfNoKind.unit='bacth'"),
    ],
)
def test_a_loss_that_no_module_would_take_is_refused(broken, reason):
    with pytest.raises(InputError, match=reason):
        check_loss_component(broken())


@pytest.mark.parametrize("check", [check_loss_component, check_importance_estimator])
def test_a_class_is_not_what_is_checked(check):
    with pytest.raises(AssertionError, match="Margin is a class: expected an instance"):
        check(Margin)


def test_a_component_that_does_not_keep_its_arguments_is_refused():
    with pytest.raises(InputError, match=r"does not keep its arguments \['margin'\]"):
        check_loss_component(ForgetsItsMargin())


@pytest.mark.parametrize(
    "component",
    [
        DPOLoss(),
        WeightedDPOLoss(),
        WeightedDPOLoss(alpha=0.0),
        WeightedDPOLoss(kl_term="tdpo1"),
        WeightedDPOLoss(kl_term="none"),
        TripletLoss(),
        TripletLoss(margin=5.0, mean=True),
    ],
)
def test_the_built_in_components_pass(component):
    check_loss_component(component)
