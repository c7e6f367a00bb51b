"""The conformance checks fail on plugins that break their contract, each for its own reason."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.contracts import ImportanceEstimator, LossComponent
from lit_tidpo.errors import InputError
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

    def scores(self, forward):
        return -forward.policy.logps


class WrongShape(Surprisal):
    def scores(self, forward):
        return super().scores(forward)[:, 1:]


class Negative(Surprisal):
    def scores(self, forward):
        return forward.policy.logps


class NotANumber(Surprisal):
    def scores(self, forward):
        return super().scores(forward) * torch.nan


class Infinite(Surprisal):
    def scores(self, forward):
        return super().scores(forward) + torch.inf


class DependsOnBatchMates(Surprisal):
    def scores(self, forward):
        scores = super().scores(forward)
        return scores / scores.mean()


class DependsOnTheLargestOfTheBatch(Surprisal):
    def scores(self, forward):
        scores = super().scores(forward)
        return scores / scores.max()


class TinyAndDependsOnBatchMates(DependsOnBatchMates):
    def scores(self, forward):
        return 1e-5 * super().scores(forward)


class DependsOnPadding(Surprisal):
    def scores(self, forward):
        return super().scores(forward) + forward.batch.input_ids.shape[1]


class LeavesGradients(Surprisal):
    def scores(self, forward):
        forward.policy.logps.sum().backward(retain_graph=True)
        return super().scores(forward)


class ClearsGradients(Surprisal):
    def scores(self, forward):
        MODELS[0].model.embed_tokens.weight.grad = None
        return super().scores(forward)


class ChangesParameters(Surprisal):
    def scores(self, forward):
        MODELS[0].model.embed_tokens.weight.data.add_(1.0)
        return super().scores(forward)


class FreezesParameters(Surprisal):
    def scores(self, forward):
        MODELS[0].model.embed_tokens.requires_grad_(False)
        return super().scores(forward)


class ChangesMode(Surprisal):
    def scores(self, forward):
        MODELS[0].eval()
        return super().scores(forward)


class ChangesTheModeOfTheReference(Surprisal):
    def scores(self, forward):
        MODELS[1].train()
        return super().scores(forward)


class ChangesTheCacheSetting(Surprisal):
    def scores(self, forward):
        MODELS[0].config.use_cache = not MODELS[0].config.use_cache
        return super().scores(forward)


class LeavesAHook(Surprisal):
    def scores(self, forward):
        MODELS[0].model.norm.register_forward_hook(lambda *_: None)
        return super().scores(forward)


class DrawsFromTheGlobalGenerator(Surprisal):
    def scores(self, forward):
        torch.rand(1)
        return super().scores(forward)


class ForgetsItsArgument(Surprisal):
    def __init__(self, power=2.0):
        self._power = power


class AsksForTheUnknown(Surprisal):
    needs = frozenset({"policy.gradients"})


def test_a_sound_estimator_passes():
    check_importance_estimator(Surprisal())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (WrongShape, r"WrongShape: shape \(6, 15\), expected \(6, 16\)"),
        (Negative, "scores are negative"),
        (NotANumber, "NaN or infinite"),
        (Infinite, "NaN or infinite"),
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
def test_w3_n5_a_broken_estimator_is_told_what_does_not_hold(broken, reason):
    """W1, W3, N5: what plugins are held to is what the built-in estimators are held to."""
    with pytest.raises(AssertionError, match=reason):
        check_importance_estimator(broken())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (ForgetsItsArgument, r"does not keep its arguments \['power'\]"),
        (AsksForTheUnknown, r"needs \['policy.gradients'\]"),
    ],
)
def test_an_estimator_that_no_module_would_take_is_refused(broken, reason):
    with pytest.raises(InputError, match=reason):
        check_importance_estimator(broken())


# Loss components


class Margin(LossComponent):
    """A sound one, that the broken ones derive from."""

    needs = frozenset({"reference.logps"})

    def margins(self, scores):
        sums = [
            scores[role].log_ratios.masked_fill(~scores[role].mask, 0.0).sum(-1)
            for role in ("chosen", "rejected")
        ]
        return sums[0] - sums[1]

    def loss(self, scores, beta):
        return (1 - beta * self.margins(scores)).clamp(min=0)


class Averaged(Margin):
    def loss(self, scores, beta):
        return super().loss(scores, beta).mean()


class NotFinite(Margin):
    def loss(self, scores, beta):
        return super().loss(scores, beta) * torch.nan


class WithoutGradient(Margin):
    def loss(self, scores, beta):
        return super().loss(scores, beta).detach().requires_grad_()


class InfiniteGradient(Margin):
    def loss(self, scores, beta):
        return super().loss(scores, beta) + (0 * self.margins(scores)).sqrt()


class CentredOverTheBatch(Margin):
    def loss(self, scores, beta):
        loss = super().loss(scores, beta)
        return loss - loss.mean()


class MasksByMultiplication(Margin):
    def margins(self, scores):
        sums = [
            (scores[role].log_ratios * scores[role].mask).sum(-1) for role in ("chosen", "rejected")
        ]
        return sums[0] - sums[1]


class CountsPadding(Margin):
    needs = frozenset({"reference.logps", "weights"})

    def loss(self, scores, beta):
        return super().loss(scores, beta) + scores["chosen"].weights.nan_to_num(3.0).sum(-1)


class ForgetsItsMargin(Margin):
    def __init__(self, margin=1.0):
        pass


class WritesIntoItsInputs(Margin):
    needs = frozenset({"reference.logps", "weights"})

    def loss(self, scores, beta):
        loss = super().loss(scores, beta)
        scores["chosen"].weights.mul_(0.5)
        return loss


def test_a_sound_component_passes():
    check_loss_component(Margin())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Averaged, r"Averaged: shape \(\), expected \(3,\)"),
        (NotFinite, "loss is NaN or infinite"),
        (WithoutGradient, "no policy log-prob gets a gradient"),
        (InfiniteGradient, "gradient not finite"),
        (CentredOverTheBatch, "the loss of a pair depends on other pairs"),
        (MasksByMultiplication, "values off the response count"),
        (CountsPadding, "values off the response count"),
        (WritesIntoItsInputs, r"changes \['weights'\] of 'chosen'"),
    ],
)
def test_a_broken_component_is_told_what_does_not_hold(broken, reason):
    with pytest.raises(AssertionError, match=reason):
        check_loss_component(broken())


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
