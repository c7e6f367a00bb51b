"""Distances of responses and the triplet loss."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.functional.triplet import response_distance, triplet_loss


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


def test_l8_distance_without_any_shared_position_is_zero():
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
def test_t4_lengthening_a_rejected_response_as_long_as_the_anchor_changes_nothing(mean, extra):
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
