"""Losses that TRL 1.16 has, too, pair by pair on random logits in fp64, run by TRL's own code."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from lit_tidpo.functional.losses import sequence_mean, sequence_sum
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.losses.divergences import AlphaDivergence, ForwardKL, JensenShannon, ReverseKL
from lit_tidpo.plugins.registry import LOSSES, load
from lit_tidpo.testing import tiny_batch

from .logits import context_of, draw_logits, trl_losses

SEEDS = range(2)
DIVERGENCES = [
    (ReverseKL(), {}),
    (ForwardKL(), {"f_divergence_type": "forward_kl"}),
    (JensenShannon(), {"f_divergence_type": "js_divergence"}),
    # In fp32, as TRL's does not take fp64.
    (
        AlphaDivergence(0.5),
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    ),
]
TAU = SimpleNamespace(discopop_tau=0.07, gradient_checkpointing_kwargs=None)
# Name, arguments, TRL's loss type and settings; all that TRL generalises by f-divergences first.
OF_SCORES = [
    ("dpo", {}, "sigmoid", {}),
    ("dpo", {"length_normalised": True}, "sigmoid_norm", {}),
    ("robust", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    ("ipo", {}, "ipo", {}),
    ("hinge", {}, "hinge", {}),
    ("exo_pair", {"label_smoothing": 0.01}, "exo_pair", {"label_smoothing": 0.01}),
    ("discopop", {"tau": 0.07}, "discopop", {"args": TAU}),
]
OF_LOG_RATIOS = [
    ("nca_pair", {}, "nca_pair", {}),
    ("bco_pair", {}, "bco_pair", {}),
    ("sppo_hard", {}, "sppo_hard", {}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("sft", {}, "sft", {}),
    ("ld_dpo", {"alpha": 0.3}, "sigmoid", {"ld_alpha": 0.3}),
    ("wpo", {}, "sigmoid", {"use_weighting": True}),
]


def make(name, **arguments):
    return load(LOSSES, name, LossComponent)(**arguments)


def compare(trl_dpo, seed, loss, kind, settings, beta, dtype=torch.float64):
    batch = tiny_batch(seed=seed)
    policy, reference = (logits / 2 for logits in draw_logits(batch, seed, dtype))
    context = context_of(batch, policy, reference, batch.response_mask.to(dtype))
    settings = {"loss_types": [kind], **settings}
    expected = trl_losses(trl_dpo, batch, policy, reference, beta, **settings)
    rel = 1e-6 if dtype == torch.float64 else 1e-5
    assert loss.loss(context).tolist() == pytest.approx(expected, abs=1e-6, rel=rel)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "arguments", "kind", "settings"), [*OF_SCORES, *OF_LOG_RATIOS])
def test_it_equals_trl_s(trl_dpo, seed, name, arguments, kind, settings):
    arguments = arguments if name == "sft" else {"beta": 0.3, **arguments}
    compare(trl_dpo, seed, make(name, **arguments), kind, settings, beta=0.3)


@pytest.mark.parametrize(("divergence", "theirs"), DIVERGENCES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(("name", "arguments", "kind", "settings"), OF_SCORES)
def test_with_a_divergence_it_equals_trl_s(
    trl_dpo, divergence, theirs, name, arguments, kind, settings
):
    loss = make(name, beta=0.05, divergence=divergence, **arguments)
    dtype = torch.float32 if isinstance(divergence, AlphaDivergence) else torch.float64
    compare(trl_dpo, 0, loss, kind, {**settings, **theirs}, 0.05, dtype)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_sorted_batches_equal_trl_s(trl_dpo, name, smoothing):
    batch = tiny_batch(pairs=5)
    policy, reference = draw_logits(batch, 0, torch.float64)
    context = context_of(batch, policy, reference, batch.response_mask.double())
    settings = {"loss_types": [name], "label_smoothing": smoothing}
    expected, _ = trl_dpo.on_logits(policy, reference, batch, beta=0.2, **settings)
    loss = make(name, beta=0.2, label_smoothing=smoothing).loss(context)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.fixture
def scores():
    """A context, and summed and mean log-probs of its responses."""
    batch = tiny_batch(pairs=4)
    policy, reference = draw_logits(batch, 3, torch.float64)
    context = context_of(batch, policy, reference, batch.response_mask.double())
    roles = [context["chosen"], context["rejected"]]
    return context, *(
        [reduce(each["policy.logps"], each.mask) for each in roles]
        for reduce in (sequence_sum, sequence_mean)
    )


@pytest.fixture(scope="module")
def trainers():
    """TRL's trainers without a reference, of which the loss methods alone are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
    return CPOTrainer, ORPOTrainer


def theirs(**settings):
    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0, "loss_type": "sigmoid"}
    return SimpleNamespace(**{**defaults, **settings}, accelerator=SimpleNamespace(device="cpu"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cpo_equals_trl_s(trainers, scores, smoothing):
    """Each pair is a batch to TRL, whose negative log-likelihood is a mean over tokens."""
    context, sums, means = scores
    own = theirs(beta=0.2, label_smoothing=smoothing)
    contrast, *_ = trainers[0].cpo_loss(own, *sums)
    loss = make("cpo", beta=0.2, alpha=0.7, label_smoothing=smoothing).loss(context)
    torch.testing.assert_close(loss, contrast - 0.7 * means[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_equals_trl_s(trainers, scores, smoothing):
    context, _, means = scores
    own = theirs(beta=2.5, label_smoothing=smoothing, loss_type="simpo", simpo_gamma=1.5)
    expected, *_ = trainers[0].cpo_loss(own, *means)
    loss = make("simpo", beta=2.5, margin=1.5, label_smoothing=smoothing).loss(context)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_alpha_po_equals_trl_s(trainers, scores):
    context, _, means = scores
    own = theirs(alpha=0.25, beta=2.5, loss_type="simpo", simpo_gamma=0.1)
    expected, *_ = trainers[0].cpo_loss(own, *means)
    torch.testing.assert_close(make("alpha_po").loss(context), expected, atol=1e-6, rtol=0)


def test_orpo_equals_trl_s(trainers, scores):
    """TRL's negative log-likelihood takes in the prompt; the paper's, and ours, does not."""
    context, _, means = scores
    odds, *_ = trainers[1].odds_ratio_loss(theirs(beta=0.1), *means)
    expected = (-means[0] - odds).double()
    torch.testing.assert_close(make("orpo").loss(context), expected, atol=1e-6, rtol=0)
