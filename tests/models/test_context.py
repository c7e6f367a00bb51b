"""Context within responses: no quantity, loss or weight counts there, in any layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.kept_weights import KeptWeights
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.kept_logps import row_keys
from lit_tidpo.models.layout import choose_layout
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import InstructedModel
from lit_tidpo.objective import Objective
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.base import context_lengths
from lit_tidpo.structures import joined
from lit_tidpo.testing import tiny_batch, tiny_policy

NEEDS = frozenset({"reference.logps"})


@pytest.fixture
def batch():
    """Pairs of which all rows but the second have the response's second and third token said."""
    rows = tiny_batch(weights=False)
    context = torch.zeros_like(rows.input_ids, dtype=torch.bool)
    for row, start in enumerate(rows.prompt_lengths.tolist()):
        context[row, start + 1 : start + 3] = row != 1
    rows.context = context
    context[(rows.positions == rows.lengths[:, None] - 1)] = False
    return rows


def naive(model, batch):
    """Log-probs of the trained tokens of each row, token by token in float64."""
    found = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row, :length]
        logits = model(ids[None]).logits[0].double()
        for t in range(int(batch.prompt_lengths[row]), length):
            if not bool(batch.context[row, t]):
                found[row, t] = logits[t - 1].log_softmax(-1)[ids[t]]
    return found


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prompt"])
def test_log_ratios_and_the_loss_are_those_of_the_trained_tokens(batch, layout):
    policy, reference = (tiny_policy(seed=seed).double().eval() for seed in (0, 1))
    with torch.no_grad():
        expected = naive(policy, batch) - naive(reference, batch)
        assert choose_layout(layout, [policy, reference], NEEDS) == layout
        results = run(policy, batch, NEEDS, reference, layout=layout)
    torch.testing.assert_close(results.log_ratios.double(), expected, atol=1e-5, rtol=1e-5)
    margins = expected[: batch.size].sum(-1) - expected[batch.size :].sum(-1)
    assert results.mask.equal(batch.response_mask)
    by_hand = torch.log1p(torch.exp(-0.5 * margins))
    found = DPOLoss(beta=0.5).loss(LossContext(results))
    torch.testing.assert_close(found.double(), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prompt"])
def test_weights_are_zero_on_context_and_one_in_the_mean_elsewhere(batch, layout):
    policy, estimator = tiny_policy(), GradientImportance()
    assert choose_layout(layout, [policy], estimator.needs) == layout
    objective = Objective(estimator, "mean", {"dpo": DPOLoss(weighted=True)}, {})
    weights = objective.explain(Models(policy, {}, layout=layout), batch).values["weights"]
    assert not weights[~batch.response_mask].any()
    torch.testing.assert_close(weights.sum(-1), batch.response_mask.sum(-1).float())


def test_parts_of_a_batch_keep_their_context(batch):
    chosen, rejected = batch.role("chosen"), batch.role("rejected")
    for part, rows in ((chosen, slice(0, 3)), (rejected, slice(3, 6))):
        width = part.input_ids.shape[1]
        assert part.response_mask.equal(batch.response_mask[rows, :width])
        assert part.host.response_mask.equal(part.response_mask)
    others = dataclasses.replace(chosen, context=None)
    both = joined([chosen, others])
    assert both.response_mask.equal(torch.cat([chosen.response_mask, others.response_mask]))
    assert both.host.response_mask.equal(both.response_mask)


def test_responses_under_other_prompts_keep_their_context(batch):
    """By a loop: each row holds the trained tokens of the next prompt's response, in order."""
    found = batch.mismatched()
    for row in range(6):
        other = row // 3 * 3 + (row + 1) % 3
        own = batch.input_ids[other][batch.response_mask[other]].tolist()
        told = found.input_ids[row][found.response_mask[row]].tolist()
        assert told
        assert told == own[: len(told)]


def test_an_instruction_moves_the_context(batch):
    rows = InstructedModel([5, 6]).rows(batch)
    assert rows.input_ids[rows.response_mask].equal(batch.input_ids[batch.response_mask])
    assert rows.host.response_mask.equal(rows.response_mask)


def test_rows_with_context_are_named_apart(batch):
    plain = row_keys(dataclasses.replace(batch, context=None))
    same = [one == other for one, other in zip(row_keys(batch), plain, strict=True)]
    assert same == [False, True, False, False, False, False]


def test_kept_weights_come_back_where_they_were(batch):
    weights = torch.rand(batch.input_ids.shape).masked_fill(~batch.response_mask, 0.0)
    kept = KeptWeights(2)
    kept.store(batch, weights, 0)
    assert kept.lookup(batch, 1).equal(weights)


def test_anchors_do_not_go_on_from_prefixes_of_several_turns(batch):
    assert context_lengths(batch, AnchorOptions()).equal(batch.prompt_lengths)
    with pytest.raises(InputError, match="several turns"):
        context_lengths(batch, AnchorOptions(source="chosen_prefix"))
