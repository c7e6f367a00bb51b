"""What holds for every registered loss, whatever its formula."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.plugins.registry import LOSSES, load, registered
from lit_tidpo.structures import Results
from lit_tidpo.testing import check_loss_component, tiny_batch, tiny_context, tiny_groups

NAMES = [entry.name for entry in registered(LOSSES) if entry.value.startswith("lit_tidpo.losses.")]
WEIGHTED = [
    name
    for name in NAMES
    if "weighted" in inspect.signature(load(LOSSES, name, LossComponent)).parameters
]


def make(name, **arguments):
    return load(LOSSES, name, LossComponent)(**arguments)


def context_of(component, weights):
    """Random results with weights of the given kind."""
    models = sorted({"reference"} | {need.split(".")[0] for need in component.needs if "." in need})
    batch = tiny_groups() if component.unit == "group" else None
    context = tiny_context(batch, models=[model for model in models if model != "policy"])
    rows = context.responses
    rows = Results(rows.batch, {**rows, "weights": weights(rows["weights"])})
    anchors = Results(context["anchor"].batch, context["anchor"])
    return LossContext(rows, anchors, mismatched=context.mismatched)


def value(component, context):
    if isinstance(component, torch.nn.Module):
        component.eval()
    found = component.loss(context)
    return found if isinstance(found, torch.Tensor) else found.values


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name):
    check_loss_component(make(name))


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_it_keeps_the_contract_and_asks_for_weights(name):
    component = make(name, weighted=True)
    assert component.needs == make(name).needs | {"weights"}
    check_loss_component(component)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_ones_change_no_bit_and_others_do(name):
    plain = make(name)
    ones = context_of(plain, torch.ones_like)
    expected = value(plain, ones)
    weighted = copy.deepcopy(plain)  # with what the first call made
    weighted.weighted = True
    assert torch.equal(value(weighted, ones), expected)
    others = context_of(plain, lambda weights: weights)
    assert not torch.equal(value(weighted, others), expected)


@pytest.mark.parametrize(
    ("name", "other"), [("kto", "apo_zero_unpaired"), ("aot", "dpo"), ("aot_unpaired", "dpo")]
)
def test_of_one_prompt_it_is_the_loss_that_the_warning_names(name, other):
    found, expected = make(name, beta=0.3), make(other, beta=0.3)
    assert other in found.alone
    context = tiny_context(tiny_batch(1))
    torch.testing.assert_close(value(found, context).sum(), value(expected, context).sum())


def test_there_are_no_fewer_losses_than_the_readme_says():
    assert len(NAMES) >= 40
