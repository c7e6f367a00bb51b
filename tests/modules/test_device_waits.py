"""How often a training step asks the device for a value, and so waits for all it has to do.

Counted on a CPU, by a stand-in (``tests/device_waits.py``). What Lightning, torchmetrics and
transformers ask is counted apart: of a step without sampling that is nothing, and ``generate``
asks at each token whether all rows have ended.
"""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from device_waits import CountsWaits, DeviceWaits

from lit_tidpo.importance.integrated_gradients_importance import IntegratedGradientsImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.modules.runtime import check_weights

from .runs import NO_TRIPLET, QUIET, SHORT, make_built, make_data, make_module, quiet_trainer

pytestmark = QUIET
PLAIN = {"losses": {"preference": DPOLoss()}}
REUSED = dataclasses.replace(SHORT, reuse_steps=2)


@pytest.fixture
def counted(model_folder, source, monkeypatch):
    """Runs two steps, and gives the waits of each."""
    module = importlib.import_module("lit_tidpo.functional.predictions")
    monkeypatch.setattr(module, "_is_at_hand", lambda values: False)  # as on a device

    def run(trainer=None, **options):
        lookahead = options["anchor"].reuse_steps if "anchor" in options else 1
        counts = CountsWaits()
        given = {"max_steps": 2, "gradient_clip_val": 1.0, "callbacks": [counts], **(trainer or {})}
        data = make_data(source, model_folder, lookahead=lookahead)
        quiet_trainer(**given).fit(make_module(model_folder, **options), data)
        return counts.steps

    return run


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (PLAIN, 1),
        ({**PLAIN, "trainer": {"accumulate_grad_batches": 2}}, 1),
        ({**NO_TRIPLET, "logits_at_once": 1000, "non_finite": "skip"}, 1),
        ({**NO_TRIPLET, "importance": IntegratedGradientsImportance(steps=2)}, 1),
        ({"anchor": SHORT}, 2),  # the second fetches what was sampled
    ],
    ids=lambda value: None if isinstance(value, int) else ",".join(value),
)
def test_a_step_waits_for_the_device_only_to_tell_errors(counted, options, most):
    steps = counted(**options)
    assert len(steps) >= 2
    for step in steps:
        assert 1 <= step.own.total() <= most, step.own
    if "anchor" not in options:
        assert not any(step.others for step in steps), steps[0].others


def test_steps_with_kept_anchors_do_not_fetch_any(counted):
    first, *others = counted(anchor=REUSED)
    assert [step.own.total() for step in (first, *others)] == [2, 1]
    assert first.others  # transformers asks at each token


def test_weights_are_checked_in_one_go_before_training(model_folder):
    module = make_built(model_folder, **PLAIN)
    with DeviceWaits() as waits:
        waits.put(list(module.parameters()))
        check_weights(module)
    assert waits.own.total() == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu() + 1,
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.arange(3).repeat_interleave(x.long().abs()),
        lambda x: torch.zeros(3).masked_scatter(x > 0, x.requires_grad_()).sum().backward(),
        lambda x: torch.ones(3).to(x.device) + x,
        lambda x: x.new_tensor([1, 2, 3]),
    ],
)
def test_the_stand_in_sees_what_makes_a_host_wait(ask):
    values = torch.tensor([1.0, -2.0, 3.0])
    with DeviceWaits(package=__file__) as waits:
        waits.put(values)
        ask(values)
        torch.ones(3).nonzero().tolist()  # of the host
        values.repeat_interleave(2).sum()
    assert waits.own.total() == 1
