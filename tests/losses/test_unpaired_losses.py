"""KTO and BCO by hand, of pairs and of single labelled responses."""

from __future__ import annotations

import dataclasses
from math import exp, log1p

import pytest
import torch

from lit_tidpo.data.collation import GroupCollator
from lit_tidpo.errors import InputError
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.apo_zero_loss import APOZeroLoss
from lit_tidpo.losses.apo_zero_unpaired_loss import APOZeroUnpairedLoss
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.bco_loss import BCOLoss
from lit_tidpo.losses.kto_loss import KTOLoss
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.objective import Objective
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_groups, tiny_policy


def sigmoid(x):
    return 1 / (1 + exp(-x))


def singles(labels):
    """A batch of prompts with one labelled response each."""
    groups = [
        {"prompt_ids": [1, 5 + n], "responses": [{"ids": [7, 2], "label": label}], "index": n}
        for n, label in enumerate(labels)
    ]
    return GroupCollator()(groups)


def context_of(batch, ratios, mismatched=None):
    """A context of given log-ratios, each at the last token of its row."""

    def results(rows, values):
        logps = torch.zeros(rows.input_ids.shape, dtype=torch.float64)
        logps[torch.arange(len(logps)), rows.lengths - 1] = torch.tensor(values).double()
        zeros = torch.zeros_like(logps)
        return Results(
            rows, {"policy.logps": logps, "reference.logps": zeros, "labels": rows.labels}
        )

    others = None if mismatched is None else results(batch.mismatched(), mismatched)
    return LossContext(results(batch, ratios), mismatched=others)


def test_kto_of_pairs_by_hand():
    """Mean of the log-ratios under other prompts: (1 + 3 - 1 + 1) / 4 = 1."""
    context = context_of(tiny_batch(pairs=2), [2.0, 0.0, -1.0, 3.0], [1.0, 3.0, -1.0, 1.0])
    loss = KTOLoss(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0).loss(context)
    first = 2 * (1 - sigmoid(0.5 * (2 - 1))) + 3 * (1 - sigmoid(0.5 * (1 + 1)))
    second = 2 * (1 - sigmoid(0.5 * (0 - 1))) + 3 * (1 - sigmoid(0.5 * (1 - 3)))
    assert loss.tolist() == pytest.approx([first / 2, second / 2])


def test_kto_of_single_labelled_responses_by_hand():
    """The reference point is not below 0."""
    context = context_of(singles([True, False]), [2.0, -1.0], [-3.0, 1.0])
    loss = KTOLoss(beta=0.5).loss(context)
    assert loss.tolist() == pytest.approx([1 - sigmoid(1.0), 1 - sigmoid(0.5)])


def test_kto_of_one_prompt_has_the_reference_point_0():
    context = context_of(singles([True]), [2.0], [5.0])
    assert KTOLoss(beta=0.5).loss(context).tolist() == pytest.approx([1 - sigmoid(1.0)])


def test_prompts_that_only_fill_up_move_no_reference_point():
    batch = singles([True, False, True])
    batch.counted = torch.tensor([True, True, False])
    context = context_of(batch, [2.0, -1.0, 0.0], [1.0, 3.0, 100.0])
    loss = KTOLoss(beta=0.5).loss(context)
    assert loss[:2].tolist() == pytest.approx([1 - sigmoid(0.0), 1 - sigmoid(1.5)])


def test_apo_zero_of_labelled_responses_is_of_each_alone():
    context = context_of(singles([True, False]), [2.0, -1.0])
    loss = APOZeroUnpairedLoss(beta=0.5).loss(context)
    assert loss.tolist() == pytest.approx([1 - sigmoid(1.0), sigmoid(-0.5)])


def test_of_pairs_it_is_half_of_apo_zero():
    context = context_of(tiny_batch(pairs=2), [2.0, 0.0, -1.0, 3.0])
    twice = 2 * APOZeroUnpairedLoss(beta=0.5).loss(context)
    torch.testing.assert_close(twice, APOZeroLoss(beta=0.5).loss(context))


def test_bco_keeps_the_mean_of_the_batches_means():
    """beta 0.5: rewards 1, 0, -0.5, 1.5 with the mean 0.5, then 2, 0 with 1; 0.75 of both."""
    loss = BCOLoss(beta=0.5)
    first = loss.loss(context_of(tiny_batch(pairs=2), [2.0, 0.0, -1.0, 3.0]))
    nls = [log1p(exp(-x)) for x in (1 - 0.5, 0 - 0.5, 0.5 + 0.5, 0.5 - 1.5)]
    assert first.tolist() == pytest.approx([(nls[0] + nls[2]) / 2, (nls[1] + nls[3]) / 2])
    second = loss.loss(context_of(singles([True, False]), [4.0, 0.0]))
    assert second.tolist() == pytest.approx([log1p(exp(-(2 - 0.75))), log1p(exp(-(0.75 - 0)))])
    assert (loss.batches, loss.average) == (2, 0.75)


def test_bco_learns_no_mean_from_an_evaluation():
    loss = BCOLoss().eval()
    loss.loss(context_of(tiny_batch(pairs=2), [2.0, 0.0, -1.0, 3.0]))
    assert (loss.batches, loss.average) == (0, 0.0)


def log_ratio(models, prompt, response):
    ids = torch.tensor([[*prompt, *response]])
    total = 0.0
    for sign, model in zip((1, -1), models.own, strict=True):
        logps = model(ids).logits[0].log_softmax(-1)
        total += sign * sum(
            logps[t - 1, ids[0, t]].item() for t in range(len(prompt), ids.shape[1])
        )
    return total


def test_kto_runs_each_response_under_the_prompt_before_its_own():
    """The reference point of the objective, from rows put together by hand."""
    models = Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})
    batch = tiny_batch(pairs=3)
    found = Objective(UniformImportance(), "mean", {"kto": KTOLoss()}, {}).evaluate(models, batch)
    rows = [row[: batch.lengths[place]].tolist() for place, row in enumerate(batch.input_ids)]
    starts = batch.prompt_lengths.tolist()
    sums = []
    for place, row in enumerate(rows):
        other = place // 3 * 3 + (place + 1) % 3
        response = rows[other][starts[other] :]
        room = batch.input_ids.shape[1] - starts[place]
        sums.append(log_ratio(models, row[: starts[place]], response[:room]))
    z = max(0.0, sum(sums) / 6)
    ratios = [
        log_ratio(models, row[:start], row[start:]) for row, start in zip(rows, starts, strict=True)
    ]
    expected = [
        (1 - sigmoid(0.1 * (ratios[n] - z)) + 1 - sigmoid(0.1 * (z - ratios[n + 3]))) / 2
        for n in range(3)
    ]
    assert found.loss.tolist() == pytest.approx(expected, abs=1e-5)
    assert not found.context.mismatched["policy.logps"].requires_grad


def test_responses_without_labels_are_refused():
    models = Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})
    groups = dataclasses.replace(tiny_groups(), desirable=None)
    with pytest.raises(InputError, match="needs 'labels', whether each response is desirable"):
        Objective(UniformImportance(), "mean", {"bco": BCOLoss()}, {}).evaluate(models, groups)
