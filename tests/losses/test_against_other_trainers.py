"""Losses of TRL 1.16's trainers besides DPOTrainer, by their own code, and sums of losses."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.plugins.registry import LOSSES, load
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_groups

from .logits import context_of, draw_logits, trl_losses

SEEDS = range(2)


def make(name, **arguments):
    return load(LOSSES, name, LossComponent)(**arguments)


@pytest.fixture(scope="module")
def trainers():
    """TRL's trainers, of which the loss methods alone are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import KTOTrainer
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.tpo import TPOTrainer
    return {"kto": KTOTrainer, "cpo": CPOTrainer, "tpo": TPOTrainer}


def trainer(**settings):
    """What the loss methods take of a trainer."""
    accelerator = SimpleNamespace(
        device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value
    )
    module = torch.nn.Module()
    module.is_gradient_checkpointing = False
    common = {
        "accelerator": accelerator,
        "model": module,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "label_smoothing": 0.0,
    }
    return SimpleNamespace(**{**common, **settings})


def drawn(batch, seed):
    policy, reference = (logits / 2 for logits in draw_logits(batch, seed, torch.float64))
    weights = batch.response_mask.double()
    return policy, context_of(batch, policy, reference, weights)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cdpo_equals_cpo_s_of_log_ratios(trainers, seed, smoothing):
    """TRL 1.16's DPOTrainer smooths no labels; the formula is left in its CPOTrainer."""
    _, context = drawn(tiny_batch(pairs=4), seed)
    own = trainer(beta=0.2, alpha=0.0, label_smoothing=smoothing, loss_type="sigmoid")
    roles = [context["chosen"], context["rejected"]]
    expected, *_ = trainers["cpo"].cpo_loss(
        own, *(sequence_sum(each.log_ratios, each.mask) for each in roles)
    )
    loss = make("cdpo", beta=0.2, label_smoothing=smoothing).loss(context)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hinge_without_a_reference_equals_cpo_s(trainers, seed):
    _, context = drawn(tiny_batch(pairs=4), seed)
    own = trainer(beta=0.05, alpha=0.0, loss_type="hinge")
    roles = [context["chosen"], context["rejected"]]
    expected, *_ = trainers["cpo"].cpo_loss(
        own, *(sequence_sum(each["policy.logps"], each.mask) for each in roles)
    )
    loss = make("hinge", beta=0.05, reference_free=True)
    assert loss.needs == frozenset()
    torch.testing.assert_close(loss.loss(context), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("sigmoid", {}), ("tpo-l", {"length_normalised": True, "margin": 0.5})],
)
def test_tpo_equals_trl_s(trainers, seed, smoothing, kind, arguments):
    """Of three responses; TRL has the gold one last."""
    groups = tiny_groups(most=3)
    policy, context = drawn(groups, seed)
    rows = [3, 5, 0]  # second, third and first response of the first prompt
    inputs = {
        "input_ids": groups.input_ids[rows],
        "attention_mask": groups.attention_mask[rows].long(),
        "completion_mask": groups.response_mask[rows].long(),
    }
    own = trainer(
        beta=0.3, tpo_alpha=0.7, loss_type=kind, tpo_l_gamma=0.5, label_smoothing=smoothing
    )
    model = lambda **_: SimpleNamespace(logits=policy[rows])  # noqa: E731
    expected = trainers["tpo"]._compute_loss(own, model, inputs, return_outputs=False)
    loss = make("tpo", beta=0.3, alpha=0.7, label_smoothing=smoothing, **arguments).loss(context)
    assert loss[0].item() == pytest.approx(expected.item(), abs=1e-6)


def kto_inputs(batch, labels):
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask.long(),
        "completion_mask": batch.response_mask.long(),
        "label": labels,
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "weights", "kind"),
    [
        ("kto", {}, "kto"),
        ("kto", {"desirable_weight": 1.5, "undesirable_weight": 0.7}, "kto"),
        ("apo_zero_unpaired", {}, "apo_zero_unpaired"),
    ],
)
def test_kto_s_losses_equal_trl_s(trainers, seed, name, weights, kind):
    """The divergence is of given log-ratios under other prompts, which each side takes its way."""
    batch = tiny_batch(pairs=4)
    _, context = drawn(batch, seed)
    others = batch.mismatched()
    _, mismatched = drawn(others, seed + 10)
    mismatched.responses["policy.logps"] += 0.5  # so that their mean log-ratio is above 0
    context = LossContext(
        Results(batch, {**context.responses, "labels": batch.labels}),
        mismatched=mismatched.responses,
    )
    needs = ("policy.logps", "reference.logps")
    logps = {need: context.responses[need][:, 1:] for need in needs}
    sums = {need: sequence_sum(mismatched.responses[need], others.response_mask) for need in needs}

    def model(need):
        def run(**_):
            zeros = torch.zeros_like(logps[need])
            return SimpleNamespace(log_probs=logps[need], entropy=zeros, mean_logits=zeros)

        run.sums = sums[need]
        return run

    own = trainer(
        beta=0.2,
        loss_type=kind,
        calculate_KL=kind == "kto",
        precompute_ref_logps=False,
        ref_model=model("reference.logps"),
        desirable_weight=weights.get("desirable_weight", 1.0),
        undesirable_weight=weights.get("undesirable_weight", 1.0),
        _compute_kl_logps=lambda model, _: model.sums,
    )
    expected = trainers["kto"]._compute_loss(
        own, model("policy.logps"), kto_inputs(batch, batch.labels), return_outputs=False
    )
    loss = make(name, beta=0.2, **weights).loss(context)
    assert loss.mean().item() == pytest.approx(expected.item(), abs=1e-6)
    if kind == "kto":
        assert own._metrics["train"]["kl"][0] > 0  # or its clamp would hide the divergence


@pytest.mark.parametrize("seed", SEEDS)
def test_iterative_rpo_equals_trl_s_two_losses(trl_dpo, seed):
    batch = tiny_batch(seed=seed)
    policy, reference = (logits / 2 for logits in draw_logits(batch, seed, torch.float64))
    context = context_of(batch, policy, reference, batch.response_mask.double())
    settings = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}
    expected = trl_losses(trl_dpo, batch, policy, reference, 0.3, **settings)
    loss = make("rpo", beta=0.3, alpha=0.4).loss(context)
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_preference_optimisation_equals_trl_s(trl_dpo, seed):
    """MPO (arXiv 2411.10442): 0.8 DPO, 0.2 BCO of pairs, 1 negative log-likelihood."""
    batch = tiny_batch(seed=seed)
    policy, reference = (logits / 2 for logits in draw_logits(batch, seed, torch.float64))
    context = context_of(batch, policy, reference, batch.response_mask.double())
    weights = [0.8, 0.2, 1.0]
    settings = {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": weights}
    expected = trl_losses(trl_dpo, batch, policy, reference, 0.1, **settings)
    losses = [make("dpo", beta=0.1), make("bco_pair", beta=0.1), make("sft")]
    total = sum(w * loss.loss(context) for w, loss in zip(weights, losses, strict=True))
    assert total.tolist() == pytest.approx(expected, abs=1e-6)
