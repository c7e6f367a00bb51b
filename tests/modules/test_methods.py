"""Losses that ask for more than log-ratios, schedules and weights of pairs, in short runs."""

from __future__ import annotations

import json

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.sparse_po_loss import SparsePOLoss
from lit_tidpo.models.policy import ModelOptions
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.registry import LOSSES, load
from lit_tidpo.schedules import CosineSchedule, LinearSchedule
from lit_tidpo.strategies.family import OneDevice

from .runs import (
    NO_TRIPLET,
    QUIET,
    SGD,
    assert_same,
    fit,
    make_built,
    make_data,
    make_module,
    pairs,
    quiet_trainer,
)

pytestmark = QUIET


def make(name, **arguments):
    return load(LOSSES, name, LossComponent)(**arguments)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model_folder):
    """Pairs with scores; each counts twice as much as the one before."""
    rows = [
        {**row, "score_chosen": 5.0, "score_rejected": number % 4, "pair_weight": 2.0**number}
        for number, row in enumerate(pairs(4))
    ]
    path = tmp_path_factory.mktemp("scored") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_data(str(path), model_folder)


PROMPTS = {"positive": ModelOptions(prompt="+"), "negative": ModelOptions(prompt="-")}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wpo", {}),
        ("kto", {}),
        ("bco", {}),
        ("beta_dpo", {}),
        ("odpo", {}),
        ("tis_dpo", {"models": PROMPTS}),
        ("sparse_po", {}),
        ("aot", {}),
        ("tpo", {}),
    ],
)
def test_it_trains(model_folder, scored, name, options):
    module = make_module(model_folder, losses={name: make(name)}, **options)
    recorder = fit(module, scored, max_steps=2)
    first, second = recorder.parameters
    assert any(not torch.equal(first[key], second[key]) for key in first)
    assert all(torch.isfinite(torch.tensor(row["train/loss/total"])) for row in recorder.metrics)
    assert ("train/rewards/margins" in recorder.metrics[-1]) == (name != "tpo")


def test_kto_keeps_the_reference_for_rows_that_no_cache_has(model_folder, data, tmp_path):
    cached, plain = (
        fit(make_module(model_folder, losses={"kto": make("kto")}, **options), data, max_steps=2)
        for options in ({"reference_cache": str(tmp_path)}, {})
    )
    assert_same(cached.parameters[-1], plain.parameters[-1], atol=1e-6)


def test_masks_and_means_are_saved_with_the_policy(model_folder, scored, tmp_path):
    losses = {"masks": SparsePOLoss(), "bco": make("bco"), "moving": make("beta_dpo")}
    module = make_module(model_folder, losses=losses)
    fit(module, scored, tmp_path, max_steps=2)
    state = module.learned.state_dict()
    assert state["masks.masks.weight"].shape == (2, 16)
    assert state["bco.batches"] == 2
    assert state["moving.average"] != 0
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=2.ckpt")
    assert_same(loaded.learned.state_dict(), state)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
def test_a_run_with_means_and_draws_goes_on_as_if_it_had_not_stopped(
    model_folder, scored, tmp_path
):
    def module():
        return make_module(model_folder, losses={n: make(n) for n in ("bco", "beta_dpo")})

    whole = fit(module(), scored, tmp_path, max_steps=3)
    rest = fit(module(), scored, ckpt_path=tmp_path / "step=1.ckpt", max_steps=3)
    assert_same(rest.parameters[-1], whole.parameters[-1])


def test_each_pair_s_weight_multiplies_its_loss(model_folder, scored):
    """Whatever the losses: the total, and no loss of its own."""
    module = make_built(model_folder, losses={"dpo": DPOLoss(), "simpo": make("simpo")})
    scored.setup("fit")
    batch = next(iter(scored.train_dataloader()))
    found = module.eval()(batch)
    weights = 2.0**batch.index
    expected = weights * (found.losses["dpo"] + found.losses["simpo"])
    torch.testing.assert_close(found.loss, expected)
    assert sorted(batch.pair_weights.tolist()) == [1.0, 2.0, 4.0, 8.0]


def test_schedules_go_by_the_share_of_the_run(model_folder, data, tmp_path):
    """Beta 0.2, 0.4, 0.6 and the weight 1, 0.75, 0.25 at the shares 0, 1/3 and 2/3."""
    losses = {"dpo": DPOLoss(beta=LinearSchedule(0.2, 0.8))}
    weights = {"dpo": CosineSchedule(1.0, 0.0)}
    module = make_module(model_folder, losses=losses, loss_weights=weights)
    recorder = fit(module, data, tmp_path, max_steps=3)
    logged = recorder.metrics
    shares = [row["train/loss/total"] / row["train/loss/dpo"] for row in logged]
    assert shares == pytest.approx([1.0, 0.75, 0.25], rel=1e-5)
    for step, beta in enumerate((0.2, 0.4, 0.6), start=1):
        alone = make_built(model_folder, losses={"dpo": DPOLoss(beta)}, loss_weights=None)
        alone.load_state_dict(torch.load(tmp_path / "step=1.ckpt", weights_only=True)["state_dict"])
        batch = recorder.windows[step - 1][0]
        scheduled = make_built(model_folder, losses=losses, loss_weights=weights)
        scheduled.load_state_dict(alone.state_dict())
        found = scheduled.objective.evaluate(
            scheduled.eval().models, batch, step=step, share=(step - 1) / 3
        )
        expected = alone.objective.evaluate(alone.eval().models, batch)
        torch.testing.assert_close(found.losses["dpo"], expected.losses["dpo"])
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=3.ckpt")
    assert vars(loaded.objective.losses["dpo"].beta) == vars(losses["dpo"].beta)
    assert vars(loaded.objective.factors["dpo"]) == vars(weights["dpo"])
    assert loaded.objective.beta.value(1.0) == 0.8


def test_weights_of_a_pass_apart_go_by_the_share_of_the_run(model_folder, data, monkeypatch):
    def ends():
        importance = HybridImportance(mix=LinearSchedule(0.1, 0.9))
        module = make_module(model_folder, importance=importance, optimizer=SGD, **NO_TRIPLET)
        quiet_trainer(max_steps=3).fit(module, data)
        return module.state_dict()

    with_the_step = ends()
    monkeypatch.setattr(OneDevice, "attributes_apart", True)
    assert_same(ends(), with_the_step)


def test_a_schedule_of_a_run_without_an_end_is_refused(model_folder, data):
    module = make_module(model_folder, losses={"dpo": DPOLoss(beta=LinearSchedule(0.2, 0.8))})
    with pytest.raises(InputError, match="schedules go by the share of the run"):
        fit(module, data, max_steps=-1, max_epochs=-1)


def test_the_losses_of_one_module_do_not_meet(model_folder, data):
    """A schedule leaves the module's own component as it was given."""
    schedule = LinearSchedule(0.2, 0.8)
    loss = DPOLoss(beta=schedule)
    fit(make_module(model_folder, losses={"dpo": loss}, optimizer=SGD), data, max_steps=1)
    assert loss.beta is schedule
