"""A resumed run goes on as if it had never stopped (G5, G6)."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_tidpo.callbacks.sigterm_checkpoint import SigtermCheckpoint
from lit_tidpo.models.loading import build_policy
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions

from .runs import (
    NO_TRIPLET,
    QUIET,
    Recorder,
    assert_same,
    every_step,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
    reference_of,
)

pytestmark = QUIET

# Everything that a resumed run could get wrong: dropout, sampled anchors, moments, a schedule.
OPTIONS = {
    "policy": {"disable_dropout": False},
    "anchor": AnchorOptions(max_new_tokens=5),
    "optimizer": functools.partial(torch.optim.AdamW, lr=0.01),
    "lr_schedule": "cosine",
    "warmup_steps": 2,
}

KEPT = AnchorOptions(max_new_tokens=5, reuse_steps=3)


@pytest.fixture
def fit(source, model_folder):
    """Train for two epochs of three batches; give what was recorded and the module."""

    def run(ckpt_path=None, accumulate=1, callbacks=None, lookahead=1, **options):
        recorder = Recorder()
        module = make_module(model_folder, **{**OPTIONS, **options})
        trainer = {"callbacks": [], **(callbacks or {})}
        trainer["callbacks"] = [*trainer["callbacks"], recorder]
        quiet_trainer(max_epochs=2, accumulate_grad_batches=accumulate, **trainer).fit(
            module, make_data(source, model_folder, lookahead=lookahead), ckpt_path=ckpt_path
        )
        return recorder, module

    return run


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
@pytest.mark.parametrize(
    ("options", "stops"),
    [
        pytest.param({}, [1, 3, 5], id="every step"),
        pytest.param({"importance_every": 5}, [2, 4], id="importance every 5"),
        pytest.param({"importance_every": 0}, [1, 3], id="importance once"),
        pytest.param({"accumulate": 2}, [1, 3], id="accumulated"),
        pytest.param({"anchor": KEPT, "lookahead": 3}, [1, 2, 4], id="anchors every 3"),
        pytest.param(
            {"anchor": dataclasses.replace(KEPT, reuse_steps=2), "lookahead": 4, "accumulate": 2},
            [1, 3],
            id="anchors every 2, accumulated",
        ),
    ],
)
def test_resuming_at_step_k_equals_the_uninterrupted_run(fit, tmp_path, options, stops):
    whole, _ = fit(callbacks=every_step(tmp_path), **options)
    steps = len(whole.metrics)
    assert steps == (4 if "accumulate" in options else 6)
    assert len({metrics["lr"] for metrics in whole.metrics}) > steps // 2
    for stop in stops:
        rest, module = fit(ckpt_path=str(tmp_path / f"step={stop}.ckpt"), **options)
        assert rest.rows == whole.rows[stop:]
        for step, expected in zip(rest.metrics, whole.metrics[stop:], strict=True):
            assert "train/loss/total" in step
            # what an earlier step alone logged stays among the uninterrupted run's metrics
            assert_same(step, {name: expected[name] for name in step})
        assert_same(rest.parameters[-1], whole.parameters[-1])
        original = build_policy(module.policy_config)
        assert_same(reference_of(module).model.state_dict(), original.state_dict())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_data_that_were_asked_for_before_the_restart_still_go_on(fit, tmp_path, monkeypatch):
    """Asking the Trainer for the number of steps makes it start on the data."""
    whole, _ = fit(callbacks=every_step(tmp_path))
    configure = PreferenceModule.configure_optimizers

    def ask_first(module):
        assert module.trainer.estimated_stepping_batches == 6
        return configure(module)

    monkeypatch.setattr(PreferenceModule, "configure_optimizers", ask_first)
    rest, _ = fit(ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert rest.rows == whole.rows[2:]


@pytest.mark.parametrize(
    "other",
    [
        {"policy": {"disable_dropout": True}},
        {"seed": 1},
        {"anchor": AnchorOptions(max_new_tokens=5, temperature=2)},
    ],
    ids=["dropout", "seed", "anchors"],
)
def test_what_resuming_repeats_does_count(fit, other):
    """The test above would pass if dropout or anchors did nothing."""
    assert fit()[0].metrics[-1] != fit(**other)[0].metrics[-1]


def test_a_checkpoint_holds_the_policy_alone(fit, tmp_path):
    _, module = fit(callbacks=every_step(tmp_path), importance_every=3)
    content = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    expected = {f"policy.{name}" for name in module.policy.state_dict()}
    assert set(content["state_dict"]) == expected
    (state,) = content["optimizer_states"]
    (group,) = state["param_groups"]
    assert len(group["params"]) == len(list(module.policy.parameters()))
    (optimized,) = module.trainer.optimizers[0].param_groups
    trained = {id(parameter) for parameter in optimized["params"]}
    assert trained == {id(parameter) for parameter in module.policy.parameters()}
    assert not any(id(frozen) in trained for frozen in reference_of(module).model.parameters())


def test_a_run_goes_on_with_the_count_of_skipped_steps(fit, tmp_path):
    _, module = fit(callbacks=every_step(tmp_path))
    module.skipped_steps = 3
    content = {}
    module.on_save_checkpoint(content)
    other = make_module(module.policy_config.path)
    other.on_load_checkpoint(content)
    assert other.skipped_steps == 3


class SigtermInValidation(Callback):
    """Lets the second validation find the signal between its batches."""

    def on_validation_batch_start(self, trainer, *rest):
        if trainer.global_step == 2:
            trainer._signal_connector.received_sigterm = True


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_signal_during_validation_saves_too(model_folder, source, tmp_path):
    """And the run goes on to the weights of one that nothing stopped."""

    def fit(folder, callbacks=(), path=None):
        module = make_module(model_folder, **NO_TRIPLET)
        trainer = quiet_trainer(
            default_root_dir=folder,
            enable_checkpointing=True,
            max_steps=4,
            val_check_interval=1,
            limit_val_batches=1.0,
            callbacks=list(callbacks),
        )
        trainer.fit(module, make_data(source, model_folder, batch_size=3), ckpt_path=path)
        return parameters(module)

    expected = fit(tmp_path / "whole")
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "cut", [SigtermInValidation(), SigtermCheckpoint()])
    (saved,) = (tmp_path / "cut").rglob("last-sigterm.ckpt")
    assert_same(fit(tmp_path / "on", path=saved), expected)
