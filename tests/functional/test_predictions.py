"""Quantities of next-token distributions against float64 autograd, and by hand."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_tidpo.functional import kl_divergence, selected_log_probs
from lit_tidpo.functional.predictions import (
    Predictions,
    Projection,
    predictions,
    tiled_predictions,
)

TOKENS, WIDTH, VOCABULARY = 13, 8, 30


def problem(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    policy = [draw(TOKENS, WIDTH), draw(VOCABULARY, WIDTH)] + ([draw(VOCABULARY)] if bias else [])
    reference = [draw(TOKENS, WIDTH), draw(VOCABULARY, WIDTH)]
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return [value.requires_grad_() for value in policy], reference, labels


def logits_of(layer):
    hidden, weight, *bias = layer
    return hidden @ weight.T + (bias[0] if bias else 0)


def naive(policy, reference, labels):
    """The definitions, by autograd over the softmax of all logits."""
    z, other = logits_of(policy), logits_of(reference)
    log_p = z.log_softmax(-1)
    return Predictions(
        log_p[range(TOKENS), labels],
        z[range(TOKENS), labels],
        -(log_p.exp() * log_p).sum(-1),
        (other.softmax(-1) * (other.log_softmax(-1) - log_p)).sum(-1),
        z.softmax(-1).square().sum(-1).log().detach(),
    )


def from_logits(policy, reference, labels):
    return predictions(logits_of(policy), labels, logits_of(reference), True, collision=True)


def tiles_of(size):
    def compute(policy, reference, labels):
        layers = (Projection(*policy), Projection(*reference))
        return tiled_predictions(layers[0], labels, size, layers[1], True, collision=True)

    return compute


def gradients(values, policy, factors):
    assert not values.log_collision.requires_grad
    loss = sum((value * factor).sum() for value, factor in zip(values[:4], factors, strict=True))
    return torch.autograd.grad(loss, policy, retain_graph=True)


@pytest.mark.parametrize("at_hand", [True, False], ids=["looks at values", "waits for nothing"])
@pytest.mark.parametrize("reduced", [4, 100], ids=["4 tokens reduced at a time", "all"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "compute",
    [from_logits, tiles_of(1), tiles_of(5), tiles_of(100)],
    ids=["logits", "1", "5", "100"],
)
def test_values_and_gradients_are_those_of_the_definitions(
    compute, bias, reduced, at_hand, monkeypatch
):
    """L9, in float64 to 1e-12; the divergence of the first tokens takes no gradient (TDPO2)."""
    module = importlib.import_module(Predictions.__module__)  # its name is also a function's
    monkeypatch.setattr(module, "_reduced_at_once", lambda logits: reduced)
    monkeypatch.setattr(module, "_is_at_hand", lambda values: at_hand)
    policy, reference, labels = problem(bias=bias)
    factors = torch.randn(4, TOKENS, dtype=torch.float64)
    factors[3, :6] = 0.0
    expected, ours = naive(policy, reference, labels), compute(policy, reference, labels)
    for value, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-12, rtol=1e-12)
    for _ in range(2):  # a retained graph serves again: attribution, then training
        for gradient, wanted in zip(
            gradients(ours, policy, factors), gradients(expected, policy, factors), strict=True
        ):
            torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("compute", [from_logits, tiles_of(4)], ids=["logits", "tiles"])
@pytest.mark.parametrize("alone", range(4), ids=Predictions._fields[:4])
def test_each_quantity_alone_has_its_gradient(compute, alone):
    policy, reference, labels = problem()
    expected, ours = naive(policy, reference, labels), compute(policy, reference, labels)
    for gradient, wanted in zip(
        torch.autograd.grad(ours[alone].sin().sum(), policy),
        torch.autograd.grad(expected[alone].sin().sum(), policy),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-10)


def test_gradients_agree_with_finite_differences():
    policy, reference, labels = problem()
    for compute in (from_logits, tiles_of(5)):
        assert torch.autograd.gradcheck(
            lambda *layer, compute=compute: tuple(compute(layer, reference, labels))[:4], policy
        )


def test_frozen_weights_get_no_gradient():
    """An adapter's output layer is frozen: only the hidden states take a gradient."""
    (hidden, weight, bias), _, labels = problem()
    layer = Projection(hidden, weight.detach(), bias.detach())
    tiled_predictions(layer, labels, 4).logps.sum().backward()
    (expected,) = torch.autograd.grad(
        selected_log_probs(logits_of([hidden, weight, bias]), labels).sum(), hidden
    )
    torch.testing.assert_close(hidden.grad, expected)
    assert weight.grad is None


def test_the_backward_pass_projects_the_reference_only_where_the_divergence_takes_a_gradient():
    policy, reference, labels = problem()
    operations = []
    for factors in (torch.zeros(TOKENS), torch.arange(TOKENS) >= 10):
        values = tiles_of(5)(policy, reference, labels)
        loss = values.logps.sum() + (factors * values.kl).sum()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(loss, policy)
        operations.append(counter.get_total_flops())
    # The last of the three tiles holds three tokens.
    assert operations[1] - operations[0] == 2 * 3 * WIDTH * VOCABULARY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softmax_runs_in_fp32(dtype):
    logits = (torch.randn(4, 1000) * 5).to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    values = predictions(logits, labels, entropy=True)
    exact = logits.detach().double().log_softmax(-1)
    assert values.logps.dtype == torch.float32
    torch.testing.assert_close(values.logps.double(), exact[range(4), labels], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        values.entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-5, rtol=0
    )
    values.logps.sum().backward()
    assert logits.grad.dtype == dtype


def test_the_divergence_is_finite_at_a_gap_of_200():
    policy = torch.tensor([[-200.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[0.0, -500.0]])
    kl = predictions(policy, torch.tensor([0]), reference).kl
    torch.testing.assert_close(kl, torch.tensor([200.0]))
    torch.testing.assert_close(kl, kl_divergence(reference, policy))
    kl.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[-1.0, 1.0]]))


def test_entries_without_probability_add_nothing():
    """``-inf`` on entries that are never a label: no NaN in values or gradients."""
    closed = torch.tensor([[0.0, 0.0, -math.inf]])
    policy = closed.clone().requires_grad_()
    values = predictions(policy, torch.tensor([1]), closed, entropy=True)
    assert [round(v.item(), 4) for v in values] == [-0.6931, 0.0, 0.6931, 0.0, 0.0]
    sum(value.sum() for value in values[:4]).backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[-0.5, 1.5, 0.0]]))


def test_what_the_policy_rules_out_and_the_reference_does_not_diverges():
    policy, reference = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]])
    assert predictions(policy, torch.tensor([0]), reference).kl.item() == math.inf


def test_autocast_projects_in_bfloat16_and_sums_in_fp32():
    (hidden, weight, bias), _, labels = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        tiled = tiled_predictions(Projection(hidden, weight, bias), labels, 4)
        full = predictions(torch.nn.functional.linear(hidden, weight, bias), labels)
    torch.testing.assert_close(tiled.logps, full.logps, atol=1e-6, rtol=0)
    ours, expected = (
        torch.autograd.grad(v.logps.sum(), (hidden, weight, bias)) for v in (tiled, full)
    )
    for gradient, wanted in zip(ours, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, atol=2e-2, rtol=2e-2)
