"""Anchors sampled in bulk and kept between the steps that use them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pair_selection import take

from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.sampling.kept_samples import KeptSamples
from lit_tidpo.structures import joined
from lit_tidpo.testing import tiny_batch, tiny_policy

OPTIONS = AnchorOptions(max_new_tokens=12, temperature=2.0, reuse_steps=3)
FIELDS = ("input_ids", "prompt_lengths", "lengths", "index", "counted")


def make_cache(options=OPTIONS):
    return KeptSamples(Generation(options), options.reuse_steps)


@pytest.fixture
def batch():
    batch = tiny_batch(pairs=6)
    batch.index = torch.tensor([30, 10, 40, 20, 60, 50])
    return batch


@pytest.fixture
def policy(monkeypatch):
    """A policy that keeps the number of rows of each generation, and whether ranks go together."""
    policy = tiny_policy()
    policy.calls, policy.synced = [], []
    generate = policy.generate

    def counted(synced_gpus, **options):
        policy.calls.append(len(options["input_ids"]))
        policy.synced.append(synced_gpus)  # there is no other rank here
        return generate(**options)

    monkeypatch.setattr(policy, "generate", counted)
    return policy


def sampled(policy, batch, options=OPTIONS, seed=0):
    torch.manual_seed(seed)
    return Generation(options).sample(policy, batch)


def tokens(anchors):
    """Ids of each row by its pair, without padding."""
    rows = zip(anchors.index.tolist(), anchors.input_ids, anchors.lengths, strict=True)
    return {pair: ids[:length].tolist() for pair, ids, length in rows}


def assert_same_batch(first, second):
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.roles == second.roles


@pytest.mark.parametrize("source", ["prompt", "chosen_prefix"])
def test_what_is_found_is_what_was_sampled(batch, policy, source):
    options = dataclasses.replace(OPTIONS, source=source)
    cache, anchors = make_cache(options), sampled(policy, batch, options)
    assert cache.lookup(batch, 1, step=5) is None
    cache.store(anchors, step=5)
    assert anchors.lengths.unique().numel() > 2
    assert_same_batch(cache.lookup(batch, 1, step=7), anchors)


def test_order_and_batch_mates_may_change_in_between(batch, policy):
    cache, anchors = make_cache(), sampled(policy, batch)
    cache.store(anchors, step=0)
    found = cache.lookup(take(batch, [4, 1]), 1, step=1)
    assert tokens(found) == {pair: tokens(anchors)[pair] for pair in (60, 10)}
    assert found.input_ids.shape[1] == int(found.lengths.max())


def test_anchors_go_stale_after_their_steps_and_are_let_go(batch, policy):
    cache = make_cache()
    first, second = take(batch, [0, 1]), take(batch, [2, 3])
    cache.store(sampled(policy, first), step=10)
    fresh = [cache.lookup(first, 1, step) is not None for step in (9, 10, 12, 13)]
    assert fresh == [False, True, True, False]
    cache.store(sampled(policy, second), step=12)
    assert set(cache.state_dict()) == {"30", "10", "40", "20"}
    cache.store(sampled(policy, second), step=13)
    assert set(cache.state_dict()) == {"40", "20"}


def test_what_is_kept_is_no_more_than_the_responses(batch, policy):
    cache, anchors = make_cache(), sampled(policy, batch)
    cache.store(anchors, step=0)
    responses = (anchors.lengths - anchors.prompt_lengths).tolist()
    for pair, length in zip(anchors.index.tolist(), responses, strict=True):
        (row,) = cache.state_dict()[str(pair)]["rows"]
        assert row.untyped_storage().nbytes() == 8 * length
    expected = tokens(anchors)
    anchors.input_ids.zero_()
    assert tokens(cache.lookup(batch, 1, step=0)) == expected


def test_the_state_survives_a_checkpoint_loaded_with_weights_only(batch, policy, tmp_path):
    cache, anchors = make_cache(), sampled(policy, batch)
    cache.store(anchors, step=6)
    torch.save({"cache": cache.state_dict()}, tmp_path / "state.pt")
    other = make_cache()
    other.update(torch.load(tmp_path / "state.pt", weights_only=True)["cache"])
    assert_same_batch(other.lookup(batch, 1, step=8), anchors)
    assert other.lookup(batch, 1, step=9) is None


def window(batch):
    """Three batches, the first of which announces the others."""
    first, *others = (take(batch, pairs) for pairs in ([0, 1], [2, 3], [4, 5]))
    return dataclasses.replace(first, upcoming=tuple(b.role("chosen") for b in others)), *others


def test_a_window_is_sampled_in_one_go(batch, policy):
    cache = make_cache()
    torch.manual_seed(3)
    found = {}
    for step, part in enumerate(window(batch)):
        found |= tokens(cache.sample(policy, part, 1, step))
    assert policy.calls == [6]
    assert found == tokens(sampled(policy, batch, seed=3))


def test_the_start_of_a_window_samples_anew_even_what_is_fresh(batch, policy):
    """Else its later batches could go stale, which announce nothing."""
    cache = make_cache()
    first, second, third = window(batch)
    before = cache.sample(policy, first, 1, step=0)
    again = cache.sample(policy, first, 1, step=1)
    assert tokens(again) != tokens(before)
    cache.sample(policy, second, 1, step=3)
    cache.sample(policy, third, 1, step=3)
    assert policy.calls == [6, 6]


def test_batches_that_announce_nothing_use_again_what_is_fresh(batch, policy):
    cache = make_cache()
    first, second = take(batch, [0, 1, 2]), take(batch, [2, 1])
    anchors = tokens(cache.sample(policy, first, 1, step=0))
    again = tokens(cache.sample(policy, second, 1, step=2))
    assert again == {pair: anchors[pair] for pair in (40, 10)}
    cache.sample(policy, take(batch, [0, 3]), 1, step=2)  # 20 is unknown: both are sampled
    cache.sample(policy, second, 1, step=3)  # stale
    assert policy.calls == [3, 2, 2]


def test_a_pair_that_fills_up_a_window_shares_its_anchor(batch, policy):
    cache, pairs = make_cache(), take(batch, [0, 1, 0])
    found = cache.sample(policy, pairs, 1, step=0)
    assert torch.equal(found.input_ids[0], found.input_ids[2])
    assert found.lengths[0] == found.lengths[2]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_ranks_of_a_sharded_model_sample_together(batch, policy, elsewhere):
    """Where another rank lacks an anchor, one that lacks none samples, too."""
    cache, asked = make_cache(), []

    def on_any_rank(here):
        asked.append(here)
        return here or elsewhere

    cache.sample(policy, batch, 1, 0, on_any_rank)
    cache.sample(policy, batch, 1, 1, on_any_rank)
    assert asked == [True, False]
    assert policy.calls == ([6, 6] if elsewhere else [6])
    assert all(policy.synced)


def test_several_responses_for_each_prompt_are_kept_together(batch, policy):
    cache = make_cache()
    torch.manual_seed(3)
    first = cache.sample(policy, batch, 2, step=0)
    assert first.roles == ("anchor_1", "anchor_2")
    again = cache.sample(policy, take(batch, [4, 1]), 2, step=1)
    for role in first.roles:
        ours, whole = tokens(again.role(role)), tokens(first.role(role))
        assert ours == {pair: whole[pair] for pair in (60, 10)}
    assert policy.calls == [12]
    cache.sample(policy, batch, 1, step=1)  # another number of them is sampled anew
    assert policy.calls == [12, 6]


def test_joined_batches_are_padded_to_the_longest_row(batch):
    parts = [take(batch, pairs).role("chosen") for pairs in ([3], [0, 5], [1, 2, 4])]
    assert len({part.input_ids.shape[1] for part in parts}) > 1
    whole = joined(parts)
    expected = take(batch, [3, 0, 5, 1, 2, 4]).role("chosen")
    for name in FIELDS:
        if name != "input_ids":
            assert torch.equal(getattr(whole, name), getattr(expected, name))
    mask = expected.attention_mask
    assert whole.input_ids.shape == mask.shape
    assert torch.equal(whole.input_ids[mask], expected.input_ids[mask])
    assert whole.upcoming == ()
    assert whole.roles == ("chosen",)
