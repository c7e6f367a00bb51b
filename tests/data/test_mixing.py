"""Several data sets as one."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.errors import InputError

RANKED = {"prompt": "Which?", "completions": ["this", "that"], "scores": [1, 2]}


@pytest.fixture
def chat_folder(tmp_path_factory, chatml):
    folder = tmp_path_factory.mktemp("chatml")
    chatml.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sources(write_rows, numbered_rows):
    """Nine pairs under other names, and three rows of ranked completions."""
    rows = [
        {"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"]}
        for r in numbered_rows(9)
    ]
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    return [
        {"source": write_rows(rows, "a.jsonl"), "columns": names},
        {"source": write_rows([RANKED] * 3, "b.jsonl")},
    ]


def numbers(data):
    return [row for batch in data.train_dataloader() for row in batch.index.tolist()]


def made(sources, tokenizer, **options):
    data = PreferenceDataModule(sources, tokenizer, batch_size=4, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_without_weights_each_row_comes_once(sources, chat_folder):
    data = made(sources, chat_folder)
    assert sorted(numbers(data)) == list(range(12))
    assert [report.rows for report in data.reports.values()] == [9, 3]
    row = data._rows["train"][11]
    assert data.tokenizer.decode(row["chosen_ids"]) == "that<|im_end|>"
    assert json.loads(json.dumps(dict(data.hparams)))["source"] == sources


def test_weights_are_shares_of_the_rows_that_are_drawn(sources, chat_folder):
    weighted = [{**sources[0], "weight": 1}, {**sources[1], "weight": 3}]
    data = made(weighted, chat_folder)
    drawn = Counter(numbers(data))
    assert set(drawn) == set(range(12))
    small = sum(count for number, count in drawn.items() if number >= 9)
    assert 0.6 < small / drawn.total() < 0.9
    assert numbers(made(weighted, chat_folder)) == numbers(data)
    assert Counter(numbers(made(weighted, chat_folder, seed=1))) != drawn


def test_validation_splits_are_joined(tmp_path, write_rows, numbered_rows, tokenizer_folder):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(numbered_rows(4), "folder/test.jsonl")
    write_rows(numbered_rows(2), "folder/validation.jsonl")
    more = write_rows(numbered_rows(5), "more.jsonl")
    data = made([{"source": str(folder), "split": "test"}, {"source": more}], tokenizer_folder)
    assert (len(data._rows["train"]), len(data._rows["validation"])) == (9, 2)
    sources = [{"source": more, "weight": 1.0}, {"source": more, "weight": 1.0}]
    data = made(sources, tokenizer_folder, validation_fraction=0.2)
    assert sorted(data._rows["validation"]["index"][:]) == [
        held + start for start in (0, 5) for held in sorted(data._rows["validation"]["index"][:1])
    ]
    data = PreferenceDataModule(sources, tokenizer_folder)
    with pytest.raises(InputError, match=r"none of .* has a split 'validation'"):
        data.setup("validate")


def test_problems_are_told_by_source_and_row(write_rows, numbered_rows, tokenizer_folder):
    broken = write_rows([*numbered_rows(2), {"prompt": "Q", "chosen": "a", "rejected": "a"}])
    sources = [{"source": write_rows(numbered_rows(3), "a.jsonl")}, {"source": broken}]
    with pytest.raises(InputError, match=r"1 identical responses \(first: row 2\)"):
        made(sources, tokenizer_folder)
    with pytest.warns(UserWarning, match="dropped: 1 identical"):
        data = made(sources, tokenizer_folder, invalid_rows="drop")
    assert sorted(numbers(data)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        ([{"source": "a", "wait": 2}], {}, "list of mappings with 'source'"),
        ([{"source": "a"}, "b"], {}, "list of mappings with 'source'"),
        ([{"source": "a", "weight": 1}, {"source": "b"}], {}, r"are \[1, None\]: give each"),
        ([{"source": "a", "weight": 0}], {}, "a number above 0"),
        ([{"source": "a"}], {"streaming": True}, "streaming=True does not go with several"),
        ([{"source": "a"}], {"name": "en"}, "name='en' does not go with several"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources, options, words):
    with pytest.raises(InputError, match=words):
        PreferenceDataModule(sources, "builtin:policy", **options)


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
def test_rows_of_a_program_are_no_part_of_a_checkpoint(kind, numbered_rows, tokenizer_folder):
    rows = [{**row, "source": "evol"} for row in numbered_rows(5)]  # a column, as in UltraFeedback
    data = made(kind(rows), tokenizer_folder)
    assert sorted(numbers(data)) == list(range(5))
    assert "source" not in data.hparams
    assert numbers(made(kind(rows), tokenizer_folder)) == numbers(data)


def test_several_processes_give_the_same_rows(write_rows, numbered_rows, tokenizer_folder):
    path = write_rows(numbered_rows(7))
    rows = [
        made(path, tokenizer_folder, processes=count)._rows["train"].to_list() for count in (1, 2)
    ]
    assert rows[0] == rows[1]
