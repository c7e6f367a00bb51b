"""Log-probs of tokens and divergences of distributions."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.functional.log_probs import (
    kl_divergence,
    scatter_tokens,
    selected_log_probs,
    token_log_probs,
)

MASK = torch.tensor(
    [
        [False, False, True, True, True, False],
        [False, True, True, False, False, False],
        [False, False, False, False, True, True],
    ]
)


def random_logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_ids(*shape, high=7, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def probabilities(logits):
    """Softmax of a list of numbers, in plain Python."""
    peak = max(logits)
    powers = [math.exp(logit - peak) for logit in logits]
    return [power / sum(powers) for power in powers]


def test_three_tokens_by_hand():
    """Probabilities 1/4, 1/2 and 3/4 of the labels, written out."""
    logits = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]).log()
    labels = torch.tensor([0, 1, 0])
    expected = torch.tensor([-1.386294361, -0.693147181, -0.287682072])
    torch.testing.assert_close(selected_log_probs(logits, labels), expected)


def test_each_response_token_is_scored_by_the_position_before_it():
    """Naive loop: column t holds log p(token t) by the logits at t - 1, and zero off the response.

    A column of its own for each token settles that nothing is off by one.
    """
    logits, ids = random_logits(3, 6, 7), random_ids(3, 6)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for row in range(3):
        for t in range(6):
            if MASK[row, t]:
                shares = probabilities(logits[row, t - 1].tolist())
                expected[row, t] = math.log(shares[ids[row, t]])
    torch.testing.assert_close(token_log_probs(logits, ids, MASK), expected)


def test_a_logit_moves_the_next_token_and_no_other():
    logits, ids = random_logits(3, 6, 7), random_ids(3, 6)
    before = token_log_probs(logits, ids, MASK)
    logits[0, 2, ids[0, 3]] += 1.0
    changed = (token_log_probs(logits, ids, MASK) - before) != 0
    assert changed.nonzero().tolist() == [[0, 3]]


def test_gradient_is_one_hot_minus_softmax():
    logits, labels = random_logits(4, 7).requires_grad_(), random_ids(4)
    (gradient,) = torch.autograd.grad(selected_log_probs(logits, labels).sum(), logits)
    expected = torch.tensor(
        [
            [float(v == label) - share for v, share in enumerate(probabilities(row))]
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(gradient, expected)


def test_log_softmax_of_bf16_logits_is_taken_in_fp32():
    """L4: at most 1e-5 nats off fp64 per token, where a bf16 log-softmax is off by hundredths."""
    logits = (4 * random_logits(128, 32000, dtype=torch.float32)).bfloat16()
    labels = random_ids(128, high=32000)
    exact = logits.double().log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    ours = selected_log_probs(logits, labels)
    careless = logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 1e-5
    assert (careless.double() - exact).abs().max() > 0.02  # so the bound above says something


def test_divergence_of_bf16_logits_is_taken_in_fp32():
    first = random_logits(64, 4000, dtype=torch.float32).bfloat16()
    second = random_logits(64, 4000, seed=2, dtype=torch.float32).bfloat16()
    expected = kl_divergence(first.double(), second.double())
    ours = kl_divergence(first, second)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("planted", [math.nan, math.inf, -math.inf])
def test_what_stands_at_other_positions_changes_neither_value_nor_gradient(planted):
    """L6: logits that predict prompt or padding may be anything."""
    ids = random_ids(3, 6)

    def run(logits):
        logits = logits.clone().requires_grad_()
        values = token_log_probs(logits, ids, MASK)
        (gradient,) = torch.autograd.grad(values.square().sum(), logits)
        return values.detach(), gradient

    clean = random_logits(3, 6, 7)
    predicting = MASK.roll(-1, dims=-1)
    dirty = clean.masked_fill(~predicting[..., None], planted)
    for ours, expected in zip(run(dirty), run(clean), strict=True):
        assert torch.equal(ours, expected)
        assert bool(ours.isfinite().all())


def test_minus_infinity_on_unused_vocabulary_is_legal():
    """L6: entries that are never a label may be ruled out; the rest is a smaller vocabulary."""
    logits, labels = random_logits(4, 7), random_ids(4, high=5)
    barred = logits.clone()
    barred[:, 5:] = -math.inf
    barred.requires_grad_()
    values = selected_log_probs(barred, labels)
    torch.testing.assert_close(values.detach(), selected_log_probs(logits[:, :5], labels))
    (gradient,) = torch.autograd.grad(values.sum(), barred)
    assert bool(gradient.isfinite().all())
    assert torch.equal(gradient[:, 5:], torch.zeros(4, 2, dtype=torch.float64))


def test_divergence_with_the_same_unused_vocabulary():
    reference, policy = random_logits(4, 7), random_logits(4, 7, seed=3)
    expected = kl_divergence(reference[:, :5], policy[:, :5])
    reference[:, 5:] = -math.inf
    policy[:, 5:] = -math.inf
    policy.requires_grad_()
    values = kl_divergence(reference, policy)
    torch.testing.assert_close(values.detach(), expected)
    (gradient,) = torch.autograd.grad(values.sum(), policy)
    assert bool(gradient.isfinite().all())


def test_divergence_by_hand_and_in_its_direction():
    """L3: KL(reference || policy) of (1/2, 1/2) and (1/4, 3/4) is 0.143841; the other 0.130812."""
    reference, policy = torch.tensor([1.0, 1.0]).log(), torch.tensor([1.0, 3.0]).log()
    torch.testing.assert_close(kl_divergence(reference, policy), torch.tensor(0.143841036))
    torch.testing.assert_close(kl_divergence(policy, reference), torch.tensor(0.130812036))


def test_divergence_equals_a_naive_loop():
    reference, policy = random_logits(5, 7), random_logits(5, 7, seed=3)
    expected = []
    for row in range(5):
        r, p = probabilities(reference[row].tolist()), probabilities(policy[row].tolist())
        expected.append(sum(a * math.log(a / b) for a, b in zip(r, p, strict=True)))
    torch.testing.assert_close(
        kl_divergence(reference, policy), torch.tensor(expected, dtype=torch.float64)
    )


def test_gradient_of_the_divergence_is_the_difference_of_the_distributions():
    reference, policy = random_logits(5, 7), random_logits(5, 7, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence(reference, policy).sum(), policy)
    expected = [
        [p - r for p, r in zip(probabilities(a), probabilities(b), strict=True)]
        for a, b in zip(policy.tolist(), reference.tolist(), strict=True)
    ]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


def test_divergence_of_a_model_from_itself_is_zero():
    logits = random_logits(5, 7, dtype=torch.float32)
    assert torch.equal(kl_divergence(logits, logits), torch.zeros(5))


@pytest.mark.parametrize("gap", [100.0, 104.0, 200.0])
def test_divergence_is_finite_at_large_logit_gaps(gap):
    """L5: with its gradient, where softmax().log() underflows to -inf."""
    reference = torch.tensor([[0.0, -gap, 0.0]])
    policy = torch.tensor([[-gap, 0.0, 0.0]]).requires_grad_()
    value = kl_divergence(reference, policy)
    # Reference (1/2, 0, 1/2) against policy (0, 1/2, 1/2): half of a gap.
    torch.testing.assert_close(value, torch.tensor([gap / 2]))
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5, 0.0]]))


def test_the_careless_formula_fails_at_200():
    policy = torch.tensor([[-200.0, 0.0, 0.0]])
    assert not bool(policy.softmax(-1).log().isfinite().all())


def test_scattered_values_stand_in_row_order():
    values = torch.arange(1.0, 8.0)
    expected = torch.tensor([[0, 0, 1, 2, 3, 0], [0, 4, 5, 0, 0, 0], [0, 0, 0, 0, 6, 7]]).float()
    assert torch.equal(scatter_tokens(values, MASK), expected)
