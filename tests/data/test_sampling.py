"""Order, shares and skipping."""

from __future__ import annotations

import itertools

import pytest

from lit_tidpo.data.sampling import ResumableSampler


def shares(size, ranks, batch_size=2, epoch=0, **options):
    samplers = [
        ResumableSampler(range(size), ranks, r, batch_size, **options) for r in range(ranks)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    orders = [list(sampler) for sampler in samplers]
    assert [len(order) for order in orders] == [len(sampler) for sampler in samplers]
    return orders


def dealt(orders):
    """The global order that the ranks' shares were dealt from."""
    return list(itertools.chain.from_iterable(zip(*orders, strict=True)))


@pytest.mark.parametrize("size", [1, 2, 7, 8, 12])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_is_counted_once(size, ranks, shuffle):
    orders = shares(size, ranks, shuffle=shuffle)
    assert len({len(order) for order in orders}) == 1
    everything = dealt(orders)
    assert sorted(n for n in everything if n >= 0) == list(range(size))
    fill = [-1 - n for n in everything if n < 0]
    assert len(fill) == -size % ranks
    assert all(0 <= n < size for n in fill)


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"lengths": list(range(40))}])
def test_global_batches_do_not_depend_on_the_ranks(options):
    one, two = (dealt(shares(40, r, batch_size=8 // r, **options)) for r in (1, 2))
    assert one == two


@pytest.mark.parametrize(("size", "kept"), [(7, 4), (8, 8), (3, 0)])
def test_drop_last_leaves_out_the_incomplete_global_batch(size, kept):
    everything = dealt(shares(size, 2, batch_size=2, drop_last=True))
    assert len(everything) == kept
    assert len(set(everything)) == kept
    assert all(n >= 0 for n in everything)


def test_order_depends_on_seed_and_epoch_alone():
    assert shares(20, 1, seed=3, epoch=2) == shares(20, 1, seed=3, epoch=2)
    orders = [tuple(dealt(shares(20, 1, seed=s, epoch=e))) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9
    assert dealt(shares(5, 1, shuffle=False, epoch=4)) == [0, 1, 2, 3, 4]


def test_skipping_leaves_out_rows_of_the_next_iteration_only():
    sampler = ResumableSampler(range(11), 2, rank=1, batch_size=2)
    whole = list(sampler)
    sampler.skip_rows(8)
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole


def test_group_by_length_makes_batches_of_like_length():
    lengths = [n * 7919 % 1000 for n in range(1000)]

    def spread(order):
        batches = [order[start : start + 8] for start in range(0, len(order), 8)]
        return sum(max(lengths[n] for n in b) - min(lengths[n] for n in b) for b in batches)

    grouped = dealt(shares(1000, 2, batch_size=4, lengths=lengths))
    assert sorted(grouped) == list(range(1000))
    assert spread(grouped) < spread(dealt(shares(1000, 2, batch_size=4))) / 10
    firsts = [lengths[n] for n in grouped[::8]]
    assert firsts != sorted(firsts)  # batches come in random order
    assert dealt(shares(1000, 2, batch_size=4, lengths=lengths, epoch=1)) != grouped


def test_group_by_length_keeps_the_incomplete_batch_at_the_end():
    grouped = dealt(shares(11, 1, batch_size=4, lengths=[1] * 11))
    assert sorted(grouped) == list(range(11))
    assert grouped[8:] == dealt(shares(11, 1, batch_size=4))[8:]
