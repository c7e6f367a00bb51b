"""What stays known on the host when a batch moves, and what is asked again when it changes."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import torch
from device_waits import DeviceWaits
from lightning.fabric.utilities import move_data_to_device

from lit_tidpo.devices.host_rows import HostRows, Places
from lit_tidpo.structures import ResponseBatch, joined
from lit_tidpo.testing import tiny_batch, tiny_groups

FIELDS = [field.name for field in dataclasses.fields(HostRows)]


def same(found: HostRows | ResponseBatch, expected: HostRows | ResponseBatch, name: str) -> bool:
    """Whether a tensor is in both, and equal, or in neither."""
    one, other = getattr(found, name), getattr(expected, name)
    return one is other is None or torch.equal(one, other)


def is_known(batch: ResponseBatch) -> bool:
    """Whether the host knows what the tensors hold."""
    return all(same(batch.host, batch, name) for name in FIELDS)


def on_meta(batch: ResponseBatch) -> ResponseBatch:
    """Moved as Lightning moves it; nothing can be read from there."""
    return move_data_to_device(batch, torch.device("meta"))


def test_the_host_knows_rows_that_were_moved():
    batch = tiny_batch()
    batch.upcoming = (tiny_batch(seed=1).role("chosen"),)
    moved = on_meta(batch)
    assert moved.lengths.is_meta
    assert moved.upcoming[0].lengths.is_meta
    for name in FIELDS:
        assert same(moved.host, batch, name)
        assert same(moved.upcoming[0].host, batch.upcoming[0], name)


def test_what_is_made_of_moved_rows_is_known_too():
    for batch in (tiny_batch(), tiny_groups()):
        moved = on_meta(batch)
        for role in batch.roles:
            assert is_known(batch.role(role))
            expected = batch.role(role)
            found = moved.role(role)
            assert found.input_ids.shape == expected.input_ids.shape
            for name in FIELDS:
                assert same(found.host, expected, name)
    parts = [tiny_batch(seed=seed).role("chosen") for seed in range(2)]
    whole = joined([on_meta(part) for part in parts])
    for name in FIELDS:
        assert same(whole.host, joined(parts), name)


def test_changes_are_known():
    """By assignment, in place, by dataclasses.replace, in a copy, in another process."""
    batch = tiny_batch()
    kept = copy.copy(batch)
    batch.index = torch.tensor([7, 8, 9])
    batch.lengths[0] -= 1
    assert is_known(batch)
    assert kept.host.index.tolist() == [0, 1, 2]
    for other in (
        dataclasses.replace(batch, lengths=batch.lengths - 1),
        copy.deepcopy(batch),
        pickle.loads(pickle.dumps(batch)),
    ):
        assert is_known(other)
        other.input_ids[0, 0] += 1
        assert is_known(other)


def test_rows_made_on_a_device_are_fetched_once():
    batch = tiny_batch()
    del batch.__dict__["_host"]
    given = [value for name in FIELDS if (value := getattr(batch, name)) is not None]
    with DeviceWaits() as waits:
        waits.put(given)
        batch.host.lengths.tolist()
        assert waits.own.total() == len(given)
        batch.host.lengths.tolist()
        assert waits.own.total() == len(given)


def test_places_take_and_put_what_a_mask_of_bools_does():
    mask = torch.rand(4, 6) < 0.5
    places = Places(mask, torch.device("cpu"))
    values = torch.randn(4, 6, 3, requires_grad=True)
    assert torch.equal(places.of(values), values[mask])
    table = torch.zeros(4, 6, 3).masked_scatter(mask[..., None], values[mask])
    assert torch.equal(places.table(places.of(values)), table)
    factors = torch.randn(len(places), 3)
    found, expected = (
        torch.autograd.grad((taken * factors).sum(), values)[0]
        for taken in (places.of(values), values[mask])
    )
    assert torch.equal(found, expected)
