"""What holds for any scores, weights and log-ratios."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tidpo.functional import dpo_loss, normalize_scores, scale_weights, sequence_sum

MANY = settings(max_examples=100, deadline=None, derandomize=True)
LARGEST = torch.finfo(torch.float32).max
SCORES = st.lists(
    st.tuples(st.floats(0, LARGEST, width=32), st.booleans()), min_size=1, max_size=8
).filter(lambda row: any(inside for _, inside in row))
VALUES = st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=8)


def tensors(row):
    values, mask = zip(*row, strict=True)
    return torch.tensor([values], dtype=torch.float32), torch.tensor([mask])


@MANY
@given(SCORES)
def test_shares_are_those_of_exact_arithmetic(row):
    """Up to the largest number there is, whose sum is infinite."""
    scores, mask = tensors(row)
    exact = [
        float(score) if inside else 0.0 for score, inside in zip(scores[0], mask[0], strict=True)
    ]
    total = math.fsum(exact)
    found = normalize_scores(scores, mask)[0].tolist()
    if total > 1e-30:  # below, numbers have few digits
        assert found == pytest.approx([each / total for each in exact], abs=1e-5)
    assert sum(found) == pytest.approx(1.0, abs=1e-4)


@MANY
@given(SCORES, st.sampled_from(["mean", "sum", "max"]))
def test_weights_have_the_scale_that_was_asked_for(row, scale):
    scores, mask = tensors(row)
    weights = scale_weights(scores, mask, scale)[0]
    assert bool((weights[~mask[0]] == 0).all())
    inside = weights[mask[0]].double()
    if scale == "max" and float(scores[mask].max()) == 0:
        return
    one = {"mean": inside.mean(), "sum": inside.sum(), "max": inside.max()}[scale]
    assert float(one) == pytest.approx(1.0, abs=1e-4)


@MANY
@given(VALUES)
def test_sums_know_nothing_of_what_is_off_the_mask(row):
    values, mask = tensors(row)
    polluted = values.masked_fill(~mask, torch.nan)
    exact = math.fsum(float(v) for v, inside in zip(values[0], mask[0], strict=True) if inside)
    assert float(sequence_sum(polluted, mask)) == pytest.approx(exact, rel=1e-5, abs=1e-4)


@MANY
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 10.0))
def test_the_loss_is_finite_and_falls_with_the_margin(margin, beta):
    margins = torch.tensor([margin, margin + 1.0], dtype=torch.float64)
    low, high = dpo_loss(margins, beta).tolist()
    assert 0 <= high <= low < math.inf
    assert low == pytest.approx(
        max(0.0, -beta * margin) + math.log1p(math.exp(-abs(beta * margin)))
    )
