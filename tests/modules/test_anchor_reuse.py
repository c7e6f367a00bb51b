"""Anchors of several steps sampled in one go, in training."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch.utils.data import DataLoader

from lit_tidpo.errors import InputError
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation

from .runs import QUIET, SGD, Recorder, assert_same, make_data, make_module, quiet_trainer

pytestmark = QUIET

OPTIONS = AnchorOptions(max_new_tokens=6)


@pytest.fixture
def spy(monkeypatch):
    """What was sampled, and what the steps used: step, whether in training, anchors by pair."""
    found = {"sampled": [], "used": []}

    sample = Generation.sample

    def sampled(sampler, *arguments):
        anchors = sample(sampler, *arguments)
        found["sampled"].append(by_pair(anchors))
        return anchors

    monkeypatch.setattr(Generation, "sample", sampled)
    own = PreferenceModule._anchors

    def used(module, batch):
        anchors = own(module, batch)
        found["used"].append((module.global_step, module.training, by_pair(anchors)))
        return anchors

    monkeypatch.setattr(PreferenceModule, "_anchors", used)
    return found


def by_pair(anchors):
    rows = zip(anchors.index.tolist(), anchors.input_ids, anchors.lengths, strict=True)
    return {pair: ids[:length].tolist() for pair, ids, length in rows}


@pytest.fixture
def fit(source, model_folder):
    """Train; give what was recorded."""

    def run(reuse_steps=1, lookahead=1, batch_size=2, data=None, **trainer):
        recorder = Recorder()
        anchor = dataclasses.replace(OPTIONS, reuse_steps=reuse_steps)
        module = make_module(model_folder, anchor=anchor)
        quiet_trainer(callbacks=[recorder], **trainer).fit(
            module,
            data or make_data(source, model_folder, batch_size=batch_size, lookahead=lookahead),
        )
        return recorder

    return run


def test_anchors_of_one_step_are_those_sampled_at_that_step(fit, spy, monkeypatch):
    """Nothing is kept, and the run is that of a module that knows of no cache."""
    plain = fit(max_steps=4)
    assert spy["sampled"] == [anchors for *_, anchors in spy["used"]]
    monkeypatch.setattr(
        PreferenceModule,
        "_anchors",
        lambda module, batch: Generation(module.anchor).sample(module.policy, batch),
    )
    assert_same(plain.parameters[-1], fit(max_steps=4).parameters[-1])


def test_a_window_of_steps_uses_what_was_sampled_at_its_start(fit, spy):
    """Six batches in an epoch: windows of four and of two."""
    fit(reuse_steps=4, lookahead=4, max_epochs=2)
    assert [len(sampled) for sampled in spy["sampled"]] == [8, 4, 8, 4]
    assert [step for step, *_ in spy["used"]] == list(range(12))
    for (step, _, used), window in zip(
        spy["used"], [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3], strict=True
    ):
        assert len(used) == 2, step
        assert used == {pair: spy["sampled"][window][pair] for pair in used}
    first, _, second, _ = spy["sampled"]
    assert any(first[pair] != second[pair] for pair in first.keys() & second.keys())


def test_accumulated_batches_of_a_step_are_in_its_window(fit, spy):
    """Two steps of two batches, then one step of two: the epoch's end cuts the window."""
    fit(reuse_steps=2, lookahead=4, max_epochs=1, accumulate_grad_batches=2)
    assert [step for step, *_ in spy["used"]] == [0, 0, 1, 1, 2, 2]
    assert [len(sampled) for sampled in spy["sampled"]] == [8, 4]


def test_reused_anchors_come_from_the_policy_at_the_start_of_the_window(source, model_folder, spy):
    """The likeliest tokens depend on the policy alone; after the window it would say others."""
    greedy = AnchorOptions(max_new_tokens=12, top_k=1, reuse_steps=3)
    fast = functools.partial(torch.optim.SGD, lr=1.0)
    module, recorder = make_module(model_folder, anchor=greedy, optimizer=fast), Recorder()
    data = make_data(source, model_folder, batch_size=2, lookahead=3)
    quiet_trainer(callbacks=[recorder], max_steps=3).fit(module, data)
    batches = [batch for window in recorder.windows for batch in window]
    used = {pair: row for *_, anchors in spy["used"] for pair, row in anchors.items()}
    assert len(used) == 6

    def likeliest(policy):
        anchors = [by_pair(Generation(greedy).sample(policy, batch)) for batch in batches]
        return {pair: row for part in anchors for pair, row in part.items()}

    assert used == likeliest(build_policy(PolicyConfig(path=model_folder)))
    assert used != likeliest(module.policy)


def test_validation_samples_anew_and_keeps_nothing(fit, spy):
    fit(
        reuse_steps=3,
        lookahead=3,
        max_epochs=1,
        val_check_interval=2,
        limit_val_batches=1,
    )
    evaluated = [anchors for _, training, anchors in spy["used"] if not training]
    assert len(evaluated) == 3
    assert all(anchors in spy["sampled"] for anchors in evaluated)
    assert [len(sampled) for sampled in spy["sampled"]] == [6, 2, 6, 2, 2]
    windows = [sampled for sampled in spy["sampled"] if len(sampled) == 6]
    trained = [anchors for _, training, anchors in spy["used"] if training]
    for number, used in enumerate(trained):
        assert used.items() <= windows[number // 3].items()


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_a_foreign_loader_uses_again_what_it_brings_again(fit, spy, batch):
    """It announces nothing: pairs that come again within the steps keep their anchors."""
    fit(reuse_steps=2, data=DataLoader([batch], batch_size=None), max_epochs=5)
    assert [len(sampled) for sampled in spy["sampled"]] == [4, 4, 4]


@pytest.mark.parametrize(
    ("reuse_steps", "lookahead", "accumulated", "wanted"),
    [(4, 1, 1, 4), (1, 4, 1, 1), (2, 2, 3, 6), (1, 3, 3, 1)],
)
def test_a_loader_that_does_not_fit_is_refused(fit, reuse_steps, lookahead, accumulated, wanted):
    with pytest.raises(InputError, match=rf"data\.lookahead={lookahead}: expected {wanted}, "):
        fit(reuse_steps, lookahead, max_steps=1, accumulate_grad_batches=accumulated)


def test_a_module_without_anchors_takes_batches_one_by_one(source, model_folder):
    module = SFTModule(PolicyConfig(path=model_folder), optimizer=SGD)
    with pytest.raises(InputError, match=r"data\.lookahead=2: expected 1, "):
        quiet_trainer(max_steps=1).fit(module, make_data(source, model_folder, lookahead=2))


def test_without_a_trainer_each_call_samples(model_folder, batch, spy):
    module = make_module(model_folder, anchor=dataclasses.replace(OPTIONS, reuse_steps=3))
    module.configure_model()
    for _ in range(2):
        module(batch, 0)
    assert len(spy["sampled"]) == 2
