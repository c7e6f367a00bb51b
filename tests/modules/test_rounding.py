"""Small steps in bfloat16 weights: on average they count."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.rounding import round_stochastically, stochastically_rounded

from .runs import NO_TRIPLET, QUIET, assert_same, fit, make_data, make_module, parameters

pytestmark = QUIET
ROUNDED = {"dtype": "bfloat16", "stochastic_rounding": True}
ADAM = functools.partial(torch.optim.AdamW, lr=1e-5)


def test_the_expectation_is_the_value():
    """Neighbours of 1 are 2**-7 above and 2**-8 below; of 10,000 draws the mean errs by 5e-5."""
    draw = torch.Generator().manual_seed(0)
    for value in (1 + 0.3 * 2**-7, 1 - 0.7 * 2**-8, -3.1):
        rounded = stochastically_rounded(torch.full((10_000,), value), draw).double()
        assert len(rounded.unique()) == 2
        spread = float(rounded.max() - rounded.min())
        assert float(rounded.mean()) == pytest.approx(value, abs=0.03 * spread)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, math.inf, -math.inf])
def test_what_bfloat16_holds_stays(value):
    rounded = stochastically_rounded(torch.full((100,), value), torch.Generator())
    assert rounded.eq(value).all()


def test_small_steps_add_up_to_those_of_float64():
    """1,000 steps of SGD of a hundredth of the distance between two numbers."""
    weights = torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16))
    optimizer, step = torch.optim.SGD([weights], lr=2**-7 / 100), iter(range(1000))
    round_stochastically(optimizer, lambda: next(step))
    lost = torch.ones(500, dtype=torch.bfloat16)
    for _ in range(1000):
        weights.grad = -torch.ones_like(weights)
        optimizer.step()
        lost += 2**-7 / 100
    assert weights.dtype == torch.bfloat16
    assert lost.eq(1).all()
    assert float(weights.detach().double().mean()) == pytest.approx(1 + 10 * 2**-7, rel=0.005)


def test_each_step_is_that_of_float32_to_a_neighbour():
    torch.manual_seed(0)
    start = torch.randn(1000, dtype=torch.bfloat16)
    weights = torch.nn.Parameter(start.clone())
    wide = torch.nn.Parameter(start.float())
    optimizer, other = ADAM([weights]), ADAM([wide])
    round_stochastically(optimizer, lambda: 0)
    weights.grad = torch.randn_like(weights)
    wide.grad = weights.grad.float()
    optimizer.step()
    other.step()
    distance = (weights.float() - wide).abs() / wide.abs()
    assert (distance < 2**-7).all()
    for name, value in optimizer.state[weights].items():
        assert torch.equal(value, other.state[wide][name])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
def test_a_run_moves_and_resumes(model_folder, data, tmp_path):
    def module():
        return make_module(model_folder, policy=ROUNDED, optimizer=ADAM, **NO_TRIPLET)

    options = {"max_epochs": 2, "max_steps": -1}
    whole = fit(module(), data, tmp_path, **options)
    first, last = whole.parameters[0], whole.parameters[-1]
    assert {value.dtype for value in last.values()} == {torch.bfloat16}
    assert any(not torch.equal(first[name], last[name]) for name in first)
    resumed = module()
    rest = fit(resumed, data, ckpt_path=str(tmp_path / "step=2.ckpt"), **options)
    assert_same(rest.parameters[-1], last)
    assert parameters(resumed).keys() == last.keys()


def test_settings_without_effect_are_refused(model_folder):
    with pytest.raises(InputError, match=r"no effect with policy\.dtype='float32'"):
        PolicyConfig(model_folder, stochastic_rounding=True)
    module = make_module(model_folder, policy={**ROUNDED, "dtype": "auto"})
    module.configure_model()
    with pytest.raises(InputError, match=r"no weights that are trained are bfloat16"):
        module.configure_optimizers()


def test_passes_run_in_bfloat16_and_hooks_of_the_weights_stay(model_folder, source, monkeypatch):
    """DDP hangs its hooks where gradients are gathered, which go with a weight's type."""
    module = make_module(model_folder, policy=ROUNDED)
    seen, called = [], []
    step = module.training_step

    def watched(*arguments):
        weight = next(module.policy.parameters())
        seen.append(weight.dtype)
        if len(seen) == 1:
            gatherer = weight.view_as(weight).grad_fn.next_functions[0][0]
            gatherer.register_hook(lambda *_: called.append(module.global_step))
            module.held = gatherer
        return step(*arguments)

    monkeypatch.setattr(module, "training_step", watched)
    fit(module, make_data(source, model_folder, batch_size=2), limit_val_batches=0)
    assert len(seen) > 2
    assert set(seen) == {torch.bfloat16}
    assert sorted(set(called)) == list(range(len(seen)))
