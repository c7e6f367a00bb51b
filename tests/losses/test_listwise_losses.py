"""Losses of ranked responses by hand, and as what they are of two."""

from __future__ import annotations

from math import exp, log, log1p

import pytest
import torch

from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.cpo_loss import CPOLoss
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.plackett_luce_loss import PlackettLuceLoss
from lit_tidpo.losses.tpo_loss import TPOLoss
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_context, tiny_groups


def context_of(sums):
    """Groups of three, two and one response with given log-probs, at the last token of each row.

    Rows: first responses of the prompts 0, 1, 2; second of 0, 1; third of 0.
    """
    groups = tiny_groups(most=3)
    logps = torch.zeros(groups.input_ids.shape, dtype=torch.float64)
    logps[torch.arange(6), groups.lengths - 1] = torch.tensor(sums).double()
    return LossContext(
        Results(groups, {"policy.logps": logps, "reference.logps": torch.zeros_like(logps)})
    )


def test_plackett_luce_by_hand():
    """Likelihoods 3/6 * 2/3 * 1/1 of three responses, 1/4 of two, 1 of a single one."""
    odds = [3.0, 1.0, 7.0, 2.0, 3.0, 1.0]
    context = context_of([2 * log(value) for value in odds])
    loss = PlackettLuceLoss(beta=0.5).loss(context)
    assert loss.tolist() == pytest.approx([log(3), log(4), 0.0])


def test_of_pairs_plackett_luce_is_dpo():
    context = tiny_context()
    torch.testing.assert_close(PlackettLuceLoss().loss(context), DPOLoss().loss(context))


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_tpo_by_hand(margin):
    """Three: second against third and the first; two: first against second and the first."""
    context = context_of([-2.0, -3.0, -4.0, -1.0, -2.5, -5.0])
    lengths = context.responses.mask.sum(-1).tolist()
    loss = TPOLoss(beta=0.5, alpha=0.2, margin=margin).loss(context)
    expected = [
        log1p(exp(-(0.5 * (-1 + 5) - margin))) + 0.2 * 2 / lengths[0],
        log1p(exp(-(0.5 * (-3 + 2.5) - margin))) + 0.2 * 3 / lengths[1],
        0.2 * 4 / lengths[2],
    ]
    assert loss.tolist() == pytest.approx(expected)


def test_tpo_l_averages_over_the_tokens():
    context = context_of([-2.0, -3.0, -4.0, -1.0, -2.5, -5.0])
    lengths = context.responses.mask.sum(-1).tolist()
    loss = TPOLoss(beta=2.0, alpha=0.0, length_normalised=True, margin=0.5).loss(context)
    expected = log1p(exp(-(2 * (-1 / lengths[3] + 5 / lengths[5]) - 0.5)))
    assert loss[0].item() == pytest.approx(expected)


def test_of_pairs_tpo_is_cpo():
    """The gold response is the preferred one then."""
    context = tiny_context()
    ours, cpo = (kind(beta=0.3, alpha=0.7).loss(context) for kind in (TPOLoss, CPOLoss))
    torch.testing.assert_close(ours, cpo)
    assert TPOLoss().needs == frozenset()
