"""DPO with a dynamic beta, by hand and against the formula of its authors' code."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.beta_dpo_loss import BetaDPOLoss
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch


def context_of(margins, counted=None):
    """Pairs with given margins of log-ratios."""
    batch = tiny_batch(pairs=len(margins))
    if counted is not None:
        batch.counted = torch.tensor(counted)
    logps = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    rows = torch.arange(len(margins))
    logps[rows, batch.lengths[rows] - 1] = torch.tensor(margins).double()
    return LossContext(
        Results(batch, {"policy.logps": logps, "reference.logps": torch.zeros_like(logps)})
    )


def nls(beta, margins):
    return -logsigmoid(beta * torch.tensor(margins).double()).mean().item()


def test_beta_follows_the_batch_s_mean_margin_by_hand():
    """Average 0.1 * 2 = 0.2 after one batch; beta 0.5 (1 + 0.6 (2 - 0.2)) = 1.04."""
    loss = BetaDPOLoss(beta=0.5, left_out=0.0)
    found = loss.loss(context_of([1.0, 3.0]))
    assert loss.average.item() == pytest.approx(0.2)
    assert found.quantities["beta"].item() == pytest.approx(1.04)
    assert found.values.item() == pytest.approx(nls(1.04, [1.0, 3.0]))
    loss.loss(context_of([1.0, 1.0]))
    assert loss.average.item() == pytest.approx(0.9 * 0.2 + 0.1)
    assert loss.spread.item() == pytest.approx(0.9 * 0.1 * 2**0.5)  # deviations sqrt(2), then 0


def test_beta_is_not_below_its_least():
    loss = BetaDPOLoss(beta=0.5, left_out=0.0)
    assert loss.loss(context_of([-9.0])).quantities["beta"].item() == pytest.approx(1e-3)


def test_an_evaluation_leaves_nothing_out_and_moves_no_average():
    loss = BetaDPOLoss(beta=0.5, left_out=0.5).eval()
    found = loss.loss(context_of([1.0, 3.0]))
    assert found.values.item() == pytest.approx(nls(0.5 * (1 + 0.6 * 2), [1.0, 3.0]))
    assert loss.average.item() == loss.spread.item() == 0.0


def test_outliers_are_left_out():
    """Of margins near the average and one far from it, the far one has hardly any odds."""
    loss = BetaDPOLoss(beta=0.5, left_out=0.25)
    loss.average.fill_(1.0)
    loss.spread.fill_(0.1)
    margins = [0.95, 1.0, 1.05, 9.0]
    found = loss.loss(context_of(margins))
    beta = found.quantities["beta"].item()
    assert beta == pytest.approx(0.5 * (1 + 0.6 * (1.0 - loss.average.item())), rel=1e-5)
    assert found.values.item() == pytest.approx(nls(beta, margins[:3]), rel=1e-5)


def test_prompts_that_only_fill_up_do_not_count():
    loss = BetaDPOLoss(beta=0.5, left_out=0.0)
    found = loss.loss(context_of([1.0, 3.0, 100.0], [True, True, False]))
    assert found.values.item() == pytest.approx(nls(1.04, [1.0, 3.0]))
    none = loss.loss(context_of([1.0], [False]))
    assert none.values.item() == 0.0
