"""Rows that are tokenised as they are read."""

from __future__ import annotations

import datasets
import pytest

from lit_tidpo.data.examples import PairStream
from lit_tidpo.data.reports import PreparationReport
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError


@pytest.fixture
def stream(llama_like):
    def make(rows, policy="raise", **options):
        return PairStream(
            datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=1),
            PairTokenizer(llama_like, TokenizationOptions()),
            policy,
            PreparationReport("train"),
            **options,
        )

    return make


BAD = {"prompt": "Q", "chosen": "", "rejected": "b"}


def indices(pairs):
    return [pair["index"] for pair in pairs]


def test_pairs_are_those_of_the_tokenizer(stream, numbered_rows):
    pairs = stream(numbered_rows(3))
    expected = [pairs.tokenise(row, n) for n, row in enumerate(numbered_rows(3))]
    assert list(pairs) == [{**pair, "counted": True} for pair in expected]


def test_shuffling_follows_seed_and_epoch(stream, numbered_rows):
    def order(epoch, **options):
        pairs = stream(numbered_rows(20), shuffle_buffer=8, **options)
        pairs.set_epoch(epoch)
        return indices(pairs)

    assert sorted(order(0)) == list(range(20))
    assert order(0) == order(0)
    assert len({tuple(order(epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 7)}) == 4


@pytest.mark.parametrize(("drop_last", "last"), [(False, [(6, True), (6, False)]), (True, [])])
def test_ranks_get_the_same_number_of_pairs(stream, numbered_rows, drop_last, last):
    rows = [*numbered_rows(4), BAD, *numbered_rows(2)]

    def share(rank):
        pairs = stream(rows, "drop", num_replicas=2, rank=rank, drop_last=drop_last)
        return [(pair["index"], pair["counted"]) for pair in pairs]

    with pytest.warns(UserWarning, match="dropped: 1 empty response"):
        assert share(0) == [(0, True), (2, True), (5, True)]
    with pytest.warns(UserWarning, match="dropped"):
        assert share(1) == [(1, True), (3, True), (6, True)]
    rows = numbered_rows(7)
    assert [end for rank in (0, 1) for end in share(rank)[3:]] == last


def test_skipping_counts_the_pairs_of_all_ranks(stream, numbered_rows):
    pairs = stream(numbered_rows(7), num_replicas=2, rank=1)
    pairs.skip_rows(4)
    assert indices(pairs) == [5, 6]
    assert indices(pairs) == [1, 3, 5, 6]


def test_an_unusable_row_raises_where_it_is(stream, numbered_rows):
    pairs = iter(stream([*numbered_rows(1), BAD]))
    assert next(pairs)["index"] == 0
    with pytest.raises(InputError, match=r"1 empty response \(first: row 1\)"):
        next(pairs)


def test_each_pass_reports_anew(stream, numbered_rows):
    pairs = stream([BAD, *numbered_rows(2)], "drop")
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 pairs; dropped: 1 empty response"):
            list(pairs)
        assert (pairs.report.rows, pairs.report.usable) == (3, 2)


def test_a_stream_without_a_usable_row(stream):
    with pytest.raises(InputError, match="no usable row: 1 empty response"):
        list(stream([BAD], "drop"))


def test_pairs_of_several_files_are_told_apart(llama_like, numbered_rows):
    """Shuffling mixes the files and numbers each from 0: what is kept of a pair must not mix."""
    rows = datasets.Dataset.from_list(numbered_rows(8)).to_iterable_dataset(num_shards=2)
    tokenise = PairTokenizer(llama_like, TokenizationOptions())
    pairs = PairStream(rows, tokenise, "raise", PreparationReport("train"), shuffle_buffer=2)
    first, second = ({pair["index"]: pair["prompt_ids"] for pair in pairs} for _ in range(2))
    assert len(first) == 8
    assert first == second
    assert all(0 <= index < 2**63 for index in first)
