"""Weighted sums, TDPO's margin, the DPO loss, distances of responses and the triplet loss."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.functional.losses import (
    dpo_loss,
    response_distance,
    sequence_sum,
    tdpo_margin,
    triplet_loss,
)

THREE = torch.tensor([[True, True, True]])


def test_three_tokens_by_hand():
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


def test_loss_without_any_margin_is_ln_2():
    assert dpo_loss(torch.zeros(2), beta=0.3).tolist() == [pytest.approx(math.log(2))] * 2


def test_signs_of_beta_and_alpha():
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


def test_tdpo2_stops_the_gradient_of_the_chosen_divergence():
    """L3: -beta sigmoid(-beta delta) for the margin, alpha times its opposite for rejected."""
    margin, chosen, rejected = gradients(alpha=0.5, variant=2)
    slope = 0.4 / (1 + math.exp(0.4 * (0.3 - 0.5 * (1.1 - 0.7))))
    assert margin == pytest.approx(-slope)
    assert chosen is None
    assert rejected == pytest.approx(0.5 * slope)


def test_tdpo1_passes_the_gradients_of_both_divergences():
    margin, chosen, rejected = gradients(alpha=0.5, variant=1)
    slope = 0.4 / (1 + math.exp(0.4 * (0.3 - (1.1 - 0.7))))
    assert margin == pytest.approx(-slope)
    assert chosen == pytest.approx(-slope)
    assert rejected == pytest.approx(slope)


def test_swapping_chosen_and_rejected_negates_the_margin():
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
def test_what_stands_off_the_mask_changes_neither_sum_nor_gradient(planted):
    """L6: neither in the values nor in the weights."""
    mask = torch.tensor([[False, True, True, False]])
    values = torch.tensor([[planted, 2.0, 3.0, planted]], requires_grad=True)
    weights = torch.tensor([[planted, 0.5, 2.0, planted]])
    total = sequence_sum(values, mask, weights)
    assert total.tolist() == [7.0]
    (gradient,) = torch.autograd.grad(total.sum(), values)
    assert gradient.tolist() == [[0.0, 0.5, 2.0, 0.0]]


def test_what_stands_on_the_mask_is_never_turned_into_zero():
    values = torch.tensor([[math.nan, 2.0]])
    assert sequence_sum(values, torch.tensor([[True, True]])).isnan().all()


def rows(*responses, prompts, width=9):
    """Log-ratios as right-padded rows; values off the response are NaN. Also their mask."""
    values = torch.full((len(responses), width), torch.nan, dtype=torch.float64)
    mask = torch.zeros(len(responses), width, dtype=torch.bool)
    for row, (response, prompt) in enumerate(zip(responses, prompts, strict=True)):
        end = prompt + len(response)
        values[row, prompt:end] = torch.as_tensor(response, dtype=torch.float64)
        mask[row, prompt:end] = True
    return values, mask


def naive_distance(first, second, mean=False):
    shared = min(len(first), len(second))
    total = 0.0
    for t in range(shared):
        total += (first[t] - second[t]) ** 2
    return total / max(shared, 1) if mean else total


def test_distance_by_hand():
    """(1 - 0)^2 + (2 - 4)^2 = 5 over the two positions that both have; the third counts not."""
    first = rows([1.0, 2.0, 3.0], prompts=[2])
    second = rows([0.0, 4.0], prompts=[2])
    assert response_distance(*first, *second).tolist() == [5.0]
    assert response_distance(*first, *second, mean=True).tolist() == [2.5]


@pytest.mark.parametrize("mean", [False, True])
def test_distance_equals_a_naive_loop_whatever_prompts_and_padding(mean):
    """Positions count from the first response token of each row, not from the column."""
    generator = torch.Generator().manual_seed(0)

    def draw(prompts, width):
        lengths = torch.randint(1, 6, (4,), generator=generator).tolist()
        responses = [torch.randn(length, generator=generator).tolist() for length in lengths]
        return responses, rows(*responses, prompts=prompts, width=width)

    first, first_rows = draw([1, 3, 2, 4], 9)
    second, second_rows = draw([4, 1, 5, 2], 13)
    expected = [naive_distance(a, b, mean) for a, b in zip(first, second, strict=True)]
    assert response_distance(*first_rows, *second_rows, mean).tolist() == pytest.approx(expected)
    assert response_distance(*second_rows, *first_rows, mean).tolist() == pytest.approx(expected)


def test_distance_is_the_same_at_other_offsets_and_widths():
    a, b = [0.3, -0.2, 0.9], [0.1, 0.4]
    expected = response_distance(*rows(a, prompts=[1]), *rows(b, prompts=[1]))
    moved = response_distance(*rows(a, prompts=[5], width=12), *rows(b, prompts=[0], width=4))
    assert torch.equal(moved, expected)


def test_distance_without_any_shared_position_is_zero():
    """L8: the mean over no position is 0, not NaN."""
    empty = rows([], prompts=[3])
    full = rows([1.0, 2.0], prompts=[3])
    assert response_distance(*full, *empty, mean=True).tolist() == [0.0]


def test_loss_by_hand():
    """max(0, 2 - 1.5 + 1) = 1.5 and max(0, 1 - 4 + 1) = 0."""
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([1.5, 4.0])
    assert triplet_loss(chosen, rejected, margin=1.0).tolist() == [1.5, 0.0]


ANCHOR, CHOSEN, REJECTED = [0.5, -0.2, 0.1], [0.9, 0.3, -0.4, 0.2], [0.1, -0.1, 0.2]


def loss_of(anchor, chosen, rejected, mean=False):
    a, c, r = (rows(response, prompts=[2]) for response in (anchor, chosen, rejected))
    return triplet_loss(
        response_distance(*a, *c, mean), response_distance(*a, *r, mean), margin=1.0
    )


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("extra", [[5.0], [0.0, -3.0, 2.0]])
def test_lengthening_a_rejected_response_as_long_as_the_anchor_changes_nothing(mean, extra):
    """T4: only what the anchor also has is compared, so longer is not further away."""
    before = loss_of(ANCHOR, CHOSEN, REJECTED, mean)
    assert before.item() > 0
    assert torch.equal(loss_of(ANCHOR, CHOSEN, REJECTED + extra, mean), before)


def test_gradients_flow_through_all_three_log_ratios():
    """Eq. 34-38: 2 (y_l - y_w) for the anchor, -2 (y - y_w) for chosen, 2 (y - y_l) for rejected.

    Checked against central differences as well.
    """
    parts = [ANCHOR, CHOSEN, REJECTED]
    tensors = [rows(part, prompts=[1], width=6) for part in parts]
    leaves = [values.clone().requires_grad_() for values, _ in tensors]
    masks = [mask for _, mask in tensors]
    loss = triplet_loss(
        response_distance(leaves[0], masks[0], leaves[1], masks[1]),
        response_distance(leaves[0], masks[0], leaves[2], masks[2]),
        margin=1.0,
    )
    gradients = torch.autograd.grad(loss.sum(), leaves)
    y, w, l = parts  # noqa: E741
    by_hand = [
        [2 * (l[t] - w[t]) for t in range(3)],
        [-2 * (y[t] - w[t]) for t in range(3)] + [0.0],
        [2 * (y[t] - l[t]) for t in range(3)],
    ]
    for part, (gradient, mask) in enumerate(zip(gradients, masks, strict=True)):
        assert gradient[mask].tolist() == pytest.approx(by_hand[part])
        assert gradient[~mask].tolist() == [0.0] * int((~mask).sum())
        for t in range(len(parts[part])):
            moved = []
            for step in (1e-5, -1e-5):
                shifted = [list(values) for values in parts]
                shifted[part][t] += step
                moved.append(loss_of(*shifted).item())
            assert (moved[0] - moved[1]) / 2e-5 == pytest.approx(by_hand[part][t], abs=1e-6)


def test_a_satisfied_triplet_has_no_gradient():
    distance = torch.tensor([0.5], requires_grad=True)
    loss = triplet_loss(distance, torch.tensor([2.0]), margin=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), distance)
    assert (loss.item(), gradient.item()) == (0.0, 0.0)
