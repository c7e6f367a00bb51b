"""Weighted sums, TDPO's margin and the DPO loss."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.functional.preference import dpo_loss, sequence_sum, tdpo_margin

THREE = torch.tensor([[True, True, True]])


def test_l3_three_tokens_by_hand():
    """L3: margin, KL term, beta and alpha of one pair with three tokens a side, worked out.

    Chosen: 2 * 0.5 - 0.5 * 0.2 + 0.5 * 0.1 = 0.95; rejected: 0.3 - 0.4 + 0.2 = 0.1.
    """
    chosen = sequence_sum(torch.tensor([[0.5, -0.2, 0.1]]), THREE, torch.tensor([[2.0, 0.5, 0.5]]))
    rejected = sequence_sum(torch.tensor([[0.3, -0.4, 0.2]]), THREE, torch.ones(1, 3))
    margin = chosen - rejected
    torch.testing.assert_close(margin, torch.tensor([0.85]))
    chosen_kl = sequence_sum(torch.tensor([[0.02, 0.03, 0.05]]), THREE)
    rejected_kl = sequence_sum(torch.tensor([[0.1, 0.2, 0.1]]), THREE)
    # 0.85 - 0.5 * (0.4 - 0.1) = 0.70, and 0.85 - (0.4 - 0.1) = 0.55
    tdpo2 = tdpo_margin(margin, chosen_kl, rejected_kl, alpha=0.5)
    tdpo1 = tdpo_margin(margin, chosen_kl, rejected_kl, alpha=0.5, variant=1)
    torch.testing.assert_close(tdpo2, torch.tensor([0.70]))
    torch.testing.assert_close(tdpo1, torch.tensor([0.55]))
    # ln(1 + e^-0.07) and ln(1 + e^-0.35)
    torch.testing.assert_close(dpo_loss(tdpo2, beta=0.1), torch.tensor([0.658759555]))
    torch.testing.assert_close(dpo_loss(tdpo2, beta=0.5), torch.tensor([0.533381890]))


def test_l1_loss_without_any_margin_is_ln_2():
    assert dpo_loss(torch.zeros(2), beta=0.3).tolist() == [pytest.approx(math.log(2))] * 2


def test_l3_signs_of_beta_and_alpha():
    """L3: a larger margin lowers the loss, the more so the larger beta; rejected KL raises it."""
    margin = torch.tensor([-1.0, 0.0, 1.0])
    losses = dpo_loss(margin, beta=0.1)
    assert losses.tolist() == sorted(losses.tolist(), reverse=True)
    assert dpo_loss(margin, beta=1.0)[2] < losses[2]
    assert dpo_loss(margin, beta=1.0)[0] > losses[0]
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert tdpo_margin(one, chosen_kl=one, rejected_kl=two, alpha=0.5) < one
    assert tdpo_margin(one, chosen_kl=two, rejected_kl=one, alpha=0.5) > one
    assert torch.equal(tdpo_margin(one, chosen_kl=two, rejected_kl=one, alpha=0.0), one)


def gradients(alpha, variant, beta=0.4):
    margin, chosen, rejected = (
        torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.3, 0.7, 1.1)
    )
    loss = dpo_loss(tdpo_margin(margin, chosen, rejected, alpha, variant), beta)
    grads = torch.autograd.grad(loss.sum(), (margin, chosen, rejected), allow_unused=True)
    return [None if gradient is None else gradient.item() for gradient in grads]


def test_l3_tdpo2_stops_the_gradient_of_the_chosen_divergence():
    """L3: -beta sigmoid(-beta delta) for the margin, alpha times its opposite for rejected."""
    margin, chosen, rejected = gradients(alpha=0.5, variant=2)
    slope = 0.4 / (1 + math.exp(0.4 * (0.3 - 0.5 * (1.1 - 0.7))))
    assert margin == pytest.approx(-slope)
    assert chosen is None
    assert rejected == pytest.approx(0.5 * slope)


def test_l3_tdpo1_passes_the_gradients_of_both_divergences():
    margin, chosen, rejected = gradients(alpha=0.5, variant=1)
    slope = 0.4 / (1 + math.exp(0.4 * (0.3 - (1.1 - 0.7))))
    assert margin == pytest.approx(-slope)
    assert chosen == pytest.approx(-slope)
    assert rejected == pytest.approx(slope)


def test_l10_swapping_chosen_and_rejected_negates_the_margin():
    """L10: and the losses of both orders differ by beta times the margin."""
    values = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) > 0.3
    first, second = (sequence_sum(value, mask) for value in values)
    kls = [sequence_sum(value.abs(), mask) for value in values]
    margin = tdpo_margin(first - second, kls[0], kls[1], alpha=0.5)
    swapped = tdpo_margin(second - first, kls[1], kls[0], alpha=0.5)
    torch.testing.assert_close(swapped, -margin)
    assert margin.abs().min() > 0.01
    torch.testing.assert_close(dpo_loss(swapped, 0.2) - dpo_loss(margin, 0.2), 0.2 * margin)


def test_loss_of_an_extreme_margin_is_linear_and_not_infinite():
    margin = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = dpo_loss(margin, beta=0.1)
    torch.testing.assert_close(loss, torch.tensor([1e3, 0.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), margin)
    torch.testing.assert_close(gradient, torch.tensor([-0.1, 0.0]))


def test_sum_equals_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) > 0.4
    plain, weighted = [0.0] * 4, [0.0] * 4
    for row in range(4):
        for t in range(6):
            if mask[row, t]:
                plain[row] += values[row, t].item()
                weighted[row] += values[row, t].item() * weights[row, t].item()
    assert sequence_sum(values, mask).tolist() == pytest.approx(plain)
    assert sequence_sum(values, mask, weights).tolist() == pytest.approx(weighted)


@pytest.mark.parametrize("planted", [math.nan, math.inf])
def test_l6_what_stands_off_the_mask_changes_neither_sum_nor_gradient(planted):
    """L6: neither in the values nor in the weights."""
    mask = torch.tensor([[False, True, True, False]])
    values = torch.tensor([[planted, 2.0, 3.0, planted]], requires_grad=True)
    weights = torch.tensor([[planted, 0.5, 2.0, planted]])
    total = sequence_sum(values, mask, weights)
    assert total.tolist() == [7.0]
    (gradient,) = torch.autograd.grad(total.sum(), values)
    assert gradient.tolist() == [[0.0, 0.5, 2.0, 0.0]]


def test_l7_what_stands_on_the_mask_is_never_turned_into_zero():
    values = torch.tensor([[math.nan, 2.0]])
    assert sequence_sum(values, torch.tensor([[True, True]])).isnan().all()
