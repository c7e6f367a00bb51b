"""Plain DPO against TRL and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.testing import tiny_batch, tiny_context

from .logits import SEEDS, context_of, draw_logits, trl_losses


@pytest.mark.parametrize("seed", SEEDS)
def test_it_equals_dpo_of_trl(trl_dpo, seed):
    """L2: pair by pair on random logits, labels and masks, to 1e-6."""
    batch = tiny_batch(seed=seed)
    policy, reference = draw_logits(batch, seed, torch.float32)
    context = context_of(batch, policy, reference, batch.response_mask.float())
    expected = trl_losses(trl_dpo, batch, policy, reference)
    assert DPOLoss().loss(context).tolist() == pytest.approx(expected, abs=1e-6)


def test_policy_equal_to_reference_costs_ln_2():
    """L1: whatever the weights."""
    batch = tiny_batch()
    logits = draw_logits(batch, 0, torch.float32)[0]
    context = context_of(batch, logits, logits, batch.supplied_weights)
    assert DPOLoss().loss(context).tolist() == [pytest.approx(math.log(2))] * 3


def test_loss_and_gradient_at_another_beta_by_hand():
    """-log sigmoid(beta m), and -beta sigmoid(-beta m) at each token of the chosen response."""
    context = tiny_context()
    loss = DPOLoss(beta=0.3).loss(context)
    logps = context.responses["policy.logps"]
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    mask, ratios = context.responses.mask, context.responses.log_ratios.tolist()
    for pair in range(3):
        rows = (pair, pair + 3)
        sums = [
            sum(r for r, inside in zip(ratios[row], mask[row].tolist(), strict=True) if inside)
            for row in rows
        ]
        margin = sums[0] - sums[1]
        assert loss[pair].item() == pytest.approx(math.log1p(math.exp(-0.3 * margin)), abs=1e-6)
        slope = 0.3 / (1 + math.exp(0.3 * margin))
        for row, sign in zip(rows, (-1, 1), strict=True):
            torch.testing.assert_close(gradient[row], sign * slope * mask[row])


def test_it_asks_for_the_reference_alone():
    assert DPOLoss().needs == {"reference.logps"}


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(InputError, match=rf"beta={beta}: expected a finite number above 0"):
        DPOLoss(beta=beta)
