"""The triplet loss against a naive loop."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.testing import tiny_batch, tiny_context


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_triplet_equals_a_naive_loop(seed, mean):
    """Eq. 13 over response positions, in plain Python."""
    context = tiny_context(tiny_batch(4, seed), seed)
    ratios = {
        role: [part.log_ratios[pair][part.mask[pair]].tolist() for pair in range(4)]
        for role, part in context.items()
    }

    def distance(pair, role):
        shared = list(zip(ratios["anchor"][pair], ratios[role][pair], strict=False))
        total = sum((a - b) ** 2 for a, b in shared)
        return total / len(shared) if mean else total

    expected = [
        max(0.0, distance(pair, "chosen") - distance(pair, "rejected") + 0.5) for pair in range(4)
    ]
    ours = TripletLoss(margin=0.5, mean=mean).loss(context)
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)


def test_triplet_has_gradients_for_all_three_roles():
    context = tiny_context()
    loss = TripletLoss(margin=50.0).loss(context)
    leaves = [context.responses["policy.logps"], context["anchor"]["policy.logps"]]
    data, anchors = torch.autograd.grad(loss.sum(), leaves)
    for gradient in (*data.split(3), anchors):
        assert bool((gradient.abs().sum(-1) > 0).all())


def test_it_asks_for_the_reference_and_an_anchor():
    assert TripletLoss().needs == {"reference.logps", "anchor"}


def test_a_margin_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="margin=inf"):
        TripletLoss(margin=math.inf)
