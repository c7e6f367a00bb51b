"""Random, supplied and uniform scores."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.functional import scale_weights
from lit_tidpo.importance.random_importance import RandomImportance
from lit_tidpo.importance.supplied_importance import SuppliedImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.structures import Results
from lit_tidpo.testing import check_importance_estimator, tiny_batch


def scores_of(estimator, batch):
    return estimator.scores(Results(batch, {"policy.logps": torch.zeros(batch.input_ids.shape)}))


def rearranged(batch, rows, width):
    """Other rows, in another order and width, as a batch of one role."""
    ids = torch.full((len(rows), width), 9)
    for new, old in enumerate(rows):
        length = int(batch.lengths[old])
        ids[new, :length] = batch.input_ids[old, :length]
    return dataclasses.replace(
        batch,
        input_ids=ids,
        prompt_lengths=batch.prompt_lengths[rows],
        lengths=batch.lengths[rows],
        roles=("chosen",),
        index=torch.arange(len(rows)),
        counted=torch.ones(len(rows), dtype=torch.bool),
        supplied_weights=None,
    )


def test_random_scores_of_an_example_are_the_same_wherever_it_stands():
    """N5: in another batch, at another place, with other padding, and at another time."""
    batch, estimator = tiny_batch(), RandomImportance(seed=3)
    first = scores_of(estimator, batch)
    torch.rand(5)
    assert torch.equal(scores_of(RandomImportance(seed=3), batch), first)
    rows = [4, 0, 2]
    moved = scores_of(estimator, rearranged(batch, rows, width=21))
    for new, old in enumerate(rows):
        length = int(batch.lengths[old])
        assert torch.equal(moved[new, :length], first[old, :length])


def test_random_scores_are_uniform_and_differ_by_row_and_seed():
    batch = tiny_batch(pairs=40)
    scores, mask = scores_of(RandomImportance(), batch), batch.attention_mask
    drawn = scores[mask]
    assert 0 <= drawn.min() < 0.02
    assert 0.98 < drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.05)
    assert len(drawn.unique()) > 0.99 * len(drawn)
    assert not torch.equal(scores_of(RandomImportance(seed=1), batch), scores)


def test_random_scores_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    scores_of(RandomImportance(), tiny_batch())
    assert torch.equal(torch.get_rng_state(), state)


def test_supplied_scores_become_weights_of_mean_one():
    """W9: shares of the supplied numbers, times the number of response tokens."""
    batch = tiny_batch()
    scores = scores_of(SuppliedImportance(), batch)
    weights = scale_weights(scores, batch.response_mask)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        supplied = batch.supplied_weights[row, start:end].tolist()
        expected = [value / sum(supplied) * len(supplied) for value in supplied]
        assert weights[row, start:end].tolist() == pytest.approx(expected, rel=1e-5)


def test_rows_without_supplied_scores_are_refused():
    with pytest.raises(InputError, match="columns chosen_weights and rejected_weights"):
        scores_of(SuppliedImportance(), tiny_batch(weights=False))


def test_uniform_scores_weigh_every_response_token_one():
    batch = tiny_batch()
    weights = scale_weights(scores_of(UniformImportance(), batch), batch.response_mask)
    torch.testing.assert_close(weights, batch.response_mask.float(), atol=2e-7, rtol=0)


@pytest.mark.parametrize(
    "estimator", [RandomImportance(), SuppliedImportance(), UniformImportance()]
)
def test_contract(estimator):
    check_importance_estimator(estimator)
