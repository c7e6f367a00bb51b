"""The cache of tokenised splits, and the policy for unusable rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lit_tidpo.data.loading import load_splits
from lit_tidpo.data.preparation import fingerprint, tokenise_split, usable_rows
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError
from lit_tidpo.models.tokenizer import load_tokenizer

from .conftest import CHATML, byte_level

ROWS = [
    {"prompt": "The sky", "chosen": " is blue", "rejected": " is brown"},
    {"prompt": "Paris", "chosen": " is a city", "rejected": ""},
    {"prompt": "London", "chosen": " is old", "rejected": " is old"},
]

IN_ANOTHER_PROCESS = """
import json, sys
from lit_tidpo.data.loading import load_splits
from lit_tidpo.data.preparation import fingerprint
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.models.tokenizer import load_tokenizer
data = load_splits(sys.argv[1], cache_dir=sys.argv[3])["train"]
print(fingerprint(data, PairTokenizer(load_tokenizer(sys.argv[2]), TokenizationOptions())))
"""


def name(data, tokenizer, *options):
    return fingerprint(data, PairTokenizer(tokenizer, TokenizationOptions(*options)))


def test_fingerprint_is_the_same_in_another_process(write_rows, tokenizer_folder, tmp_path):
    path, cache = write_rows(ROWS), str(tmp_path / "own")
    here = name(load_splits(path, cache_dir=cache)["train"], load_tokenizer(tokenizer_folder))
    there = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, path, tokenizer_folder, cache],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split()[-1] == here


def test_fingerprint_follows_data_tokenizer_template_and_lengths(write_rows):
    data = load_splits(write_rows(ROWS))["train"]
    other = load_splits(write_rows(ROWS[:2], "other.jsonl"))["train"]
    special = byte_level(bos=True)
    special.eos_token = "<pad>"
    names = [
        name(data, byte_level(bos=True)),
        name(other, byte_level(bos=True)),
        name(data, byte_level(bos=False)),
        name(data, special),
        name(data, byte_level(bos=True, chat_template=CHATML)),
        name(data, byte_level(bos=True), 512),
        name(data, byte_level(bos=True), 1024, 100),
    ]
    assert len(set(names)) == len(names)


def test_fingerprint_ignores_what_calls_leave_in_a_tokenizer(write_rows):
    data, tokenizer = load_splits(write_rows(ROWS))["train"], byte_level(bos=True, pad="<pad>")
    before = name(data, tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert name(data, tokenizer) == before
    assert name(data, tokenizer, 1024, 512) == before  # the default, spelled out


@pytest.mark.parametrize("own_folder", [False, True])
def test_the_cache_file_is_used_again(write_rows, llama_like, tmp_path, own_folder):
    path, calls = write_rows(ROWS), []

    class Counting(PairTokenizer):
        def batch(self, rows, numbers):
            calls.extend(numbers)
            return super().batch(rows, numbers)

    folder = str(tmp_path / "own") if own_folder else None
    results = [
        tokenise_split(
            load_splits(path)["train"], Counting(llama_like, TokenizationOptions()), folder
        )
        for _ in range(2)
    ]
    assert calls == [0, 1, 2]
    assert results[0].to_list() == results[1].to_list()
    if own_folder:
        assert list((tmp_path / "own").glob("tokenised-*.arrow"))


def tokenised(write_rows, tokenizer, rows, **options):
    tokenise = PairTokenizer(tokenizer, TokenizationOptions(**options))
    return tokenise_split(load_splits(write_rows(rows))["train"], tokenise)


def test_raise_names_each_problem_with_its_first_row(write_rows, llama_like):
    data = tokenised(write_rows, llama_like, ROWS)
    expected = (
        r"2 of 3 rows of split 'train' cannot be used: 1 empty response \(first: row 1\), "
        r"1 identical responses \(first: row 2\), counted from 0; mend them or set "
        "invalid_rows='drop'"
    )
    with pytest.raises(InputError, match=expected):
        usable_rows(data, "train", "raise", llama_like)


def test_drop_reports(write_rows, llama_like):
    data = tokenised(write_rows, llama_like, ROWS)
    with pytest.warns(UserWarning, match=r"'train': 1 pairs; dropped: 1 empty response"):
        rows, report = usable_rows(data, "train", "drop", llama_like)
    assert rows["index"][:] == [0]
    assert (report.rows, report.usable) == (3, 1)
    assert report.problems == {"empty response": 1, "identical responses": 1}


def test_nothing_left(write_rows, llama_like):
    data = tokenised(write_rows, llama_like, ROWS[1:])
    with pytest.raises(InputError, match="split 'train' has no usable row: 1 empty response"):
        usable_rows(data, "train", "drop", llama_like)


def test_truncated_rows_are_reported(write_rows, gpt2_like):
    rows = [{"prompt": "sea " * 9, "chosen": " is blue" * 9, "rejected": " old"}]
    data = tokenised(write_rows, gpt2_like, rows, max_length=12)
    with pytest.warns(UserWarning, match="truncated: 1 prompt, 1 chosen"):
        _, report = usable_rows(data, "train", "raise", gpt2_like)
    assert report.truncated == {"prompt": 1, "chosen": 1, "rejected": 0}


def test_moved_boundaries_are_reported_with_their_text(write_rows, gpt2_like):
    rows = [*ROWS[:1], {"prompt": "The sky is bl", "chosen": "ue", "rejected": "ack"}]
    data = tokenised(write_rows, gpt2_like, rows)
    with pytest.warns(UserWarning, match=r"in 1 rows, .* for example 'The sky is' \| ' blue"):
        _, report = usable_rows(data, "train", "raise", gpt2_like)
    assert report.shifted == 1


def test_nothing_to_tell_is_no_warning(write_rows, llama_like):
    rows, report = usable_rows(
        tokenised(write_rows, llama_like, ROWS[:1]), "train", "raise", llama_like
    )
    assert (len(rows), report.usable) == (1, 1)


def test_errors_in_a_row_reach_the_user(write_rows, llama_like):
    rows = [json.loads(json.dumps(ROWS[0])), {"prompt": "Q", "chosen": None, "rejected": "b"}]
    with pytest.raises(InputError, match="row 1: field 'chosen'"):
        tokenised(write_rows, llama_like, rows)


def test_what_save_to_disk_made_is_left_as_it_is(tmp_path, monkeypatch, gpt2_like):
    """The tokenised rows go to the cache of datasets, not beside the user's own files."""
    import datasets

    rows = [{"prompt": "Q", "chosen": " a", "rejected": " b"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    before = sorted(path.name for path in (tmp_path / "saved").iterdir())
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    split = load_splits(str(tmp_path / "saved"))["train"]
    tokenise_split(split, PairTokenizer(gpt2_like, TokenizationOptions()))
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == before
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".arrow", ".sha256"}
