"""Weights kept between the steps at which they are computed."""

from __future__ import annotations

import pytest
import torch
from pair_selection import take

from lit_tidpo.importance.kept_weights import KeptWeights
from lit_tidpo.testing import tiny_batch, tiny_groups


def weights_of(batch, seed=0):
    """Random weights on the responses."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.1 + torch.rand(batch.input_ids.shape, generator=generator)
    return values.masked_fill(~batch.response_mask, 0.0)


@pytest.fixture
def batch():
    batch = tiny_batch(pairs=4)
    batch.index = torch.tensor([30, 10, 40, 20])
    return batch


def test_nothing_is_found_before_anything_is_stored(batch):
    cache = KeptWeights(5)
    assert not cache.is_filled
    assert cache.lookup(batch, step=0) is None
    cache.store(batch, weights_of(batch), step=0)
    assert cache.is_filled


def test_what_is_found_is_what_was_stored(batch):
    cache, weights = KeptWeights(5), weights_of(batch)
    cache.store(batch, weights, step=0)
    assert torch.equal(cache.lookup(batch, step=4), weights)


@pytest.mark.parametrize("width", [14, 16, 25])
def test_order_batch_mates_and_padding_may_change_in_between(batch, width):
    """Weights follow the pair and the token, not the place in the batch."""
    cache, weights = KeptWeights(5), weights_of(batch)
    cache.store(batch, weights, step=0)
    pairs = [2, 0, 3]
    other = take(batch, pairs, width)
    found = cache.lookup(other, step=1)
    assert found.shape == (6, width)
    for new, old in enumerate([*pairs, *(pair + 4 for pair in pairs)]):
        length = int(batch.lengths[old])
        assert torch.equal(found[new, :length], weights[old, :length])
        assert not bool(found[new, length:].any())


def test_prompts_with_different_numbers_of_responses_keep_their_own():
    groups = tiny_groups(3)
    cache, weights = KeptWeights(5), weights_of(groups)
    cache.store(groups, weights, step=0)
    assert torch.equal(cache.lookup(groups, step=1), weights)


def test_weights_go_stale_after_their_steps(batch):
    cache = KeptWeights(3)
    cache.store(batch, weights_of(batch), step=10)
    fresh = [cache.lookup(batch, step) is not None for step in (10, 11, 12, 13, 14)]
    assert fresh == [True, True, True, False, False]


def test_one_step_keeps_weights_for_the_same_step_only(batch):
    cache = KeptWeights(1)
    cache.store(batch, weights_of(batch), step=2)
    assert cache.lookup(batch, 2) is not None
    assert cache.lookup(batch, 3) is None


def test_zero_keeps_weights_for_good(batch):
    cache = KeptWeights(0)
    cache.store(batch, weights_of(batch), step=0)
    assert cache.lookup(batch, step=10**9) is not None


def test_a_batch_with_one_unknown_or_stale_pair_is_computed_anew(batch):
    cache = KeptWeights(3)
    cache.store(take(batch, [0, 1], 16), weights_of(take(batch, [0, 1], 16)), step=0)
    cache.store(take(batch, [2], 16), weights_of(take(batch, [2], 16)), step=2)
    assert cache.lookup(take(batch, [0, 1, 2], 16), step=2) is not None
    assert cache.lookup(take(batch, [0, 3], 16), step=2) is None
    assert cache.lookup(take(batch, [0, 2], 16), step=3) is None
    assert cache.lookup(take(batch, [2], 16), step=3) is not None


def test_storing_again_replaces_weights_and_their_age(batch):
    cache, new = KeptWeights(3), weights_of(batch, seed=1)
    cache.store(batch, weights_of(batch), step=0)
    cache.store(batch, new, step=5)
    assert torch.equal(cache.lookup(batch, step=7), new)


def test_what_is_kept_is_a_copy(batch):
    cache, weights = KeptWeights(0), weights_of(batch)
    expected = weights.clone()
    cache.store(batch, weights, step=0)
    weights.zero_()
    cache.lookup(batch, step=0).zero_()
    assert torch.equal(cache.lookup(batch, step=0), expected)


def test_the_state_survives_a_checkpoint_loaded_with_weights_only(batch, tmp_path):
    cache = KeptWeights(4)
    cache.store(batch, weights_of(batch), step=6)
    torch.save({"cache": cache.state_dict()}, tmp_path / "state.pt")
    other = KeptWeights(4)
    other.update(torch.load(tmp_path / "state.pt", weights_only=True)["cache"])
    assert torch.equal(other.lookup(batch, step=9), weights_of(batch))
    assert other.lookup(batch, step=10) is None


def test_an_update_adds_what_other_ranks_kept(batch):
    caches = [KeptWeights(0), KeptWeights(0)]
    parts = [take(batch, [0, 2], 16), take(batch, [1, 3], 16)]
    for cache, part in zip(caches, parts, strict=True):
        cache.store(part, weights_of(part), step=0)
    assert caches[0].lookup(batch, 0) is None
    caches[0].update(caches[1].state_dict())
    found = caches[0].lookup(batch, 0)
    assert torch.equal(found[[0, 2, 4, 6]], weights_of(parts[0]))
    assert torch.equal(found[[1, 3, 5, 7]], weights_of(parts[1]))
