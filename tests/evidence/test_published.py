"""Pairs of published data, from files as they were published."""

import json
from pathlib import Path

import pytest

from benchmarks.evidence import published
from benchmarks.evidence.published import answer, departure, made, published_rows, results
from evidence.conftest import WRONG
from lit_tidpo.errors import InputError


def test_pairs_of_solutions_mark_the_line_where_each_departs(published_folder):
    rows = list(published.gsm8k_pairs())
    assert len(rows) == 6  # the right solution that occurs twice counts once
    row = rows[0]
    assert row["prompt"] == "Question 0?\n"
    assert row["rejected"][slice(*row["rejected_span"])] == "and sells 6+1=<<6+1=7>>7."
    ((first, last),) = row["chosen_spans"]
    assert row["chosen"][first:last] == "and sells 6-1=<<6-1=5>>5."
    assert row["rejected_spans"] == [row["rejected_span"]]
    assert row["answer"] == answer("A: 5") == answer("so\n#### 5") == 5.0


def test_a_result_that_any_right_solution_has_is_no_departure():
    assert results("1,000*2=<<1000*2=2,000>>2,000 <<X-1=Y>>") == [2000.0, "Y"]
    assert departure(WRONG, {6.0, 7.0}) is None
    assert departure(WRONG, {7.0}) == [0, len("She has 2*3=<<2*3=6>>6 eggs")]
    assert answer("no number") is None
    assert answer("A: 3\nA: $1,250.5") == 1250.5


def test_demonstrations_end_like_the_solutions(published_folder):
    (row,) = published.gsm8k_demonstrations()
    assert row["chosen"] == "2+3=<<2+3=5>>5\nA: 5"


def test_dialogues_are_grouped_by_their_opening_and_empty_ones_left_out(published_folder):
    rows = list(published.hh_pairs())
    assert [row["group"] for row in rows] == [0, 0, 1, 1]
    assert rows[0]["prompt"] == "\n\nHuman: Hello 0\n\nAssistant:"
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (" Yes", " No")


def test_no_problem_is_in_two_splits_and_files_are_made_once(published_folder, tmp_path):
    wanted = {"train": 2, "validation": 1, "test": 2}
    data = {"published": "gsm8k", "longest": 200, "rows": wanted}
    source = made(data, tmp_path / "made")["source"]
    rows = {
        split: [
            json.loads(line) for line in Path(source, f"{split}.jsonl").read_text().splitlines()
        ]
        for split in wanted
    }
    assert {split: len(each) for split, each in rows.items()} == wanted
    groups = [row["group"] for each in rows.values() for row in each]
    assert len(groups) == len({*groups})
    (published_folder / "gsm8k_model_solutions.jsonl.gz").unlink()
    assert made(data, tmp_path / "made") == {"source": source}
    assert made({"source": "builtin:policy"}, tmp_path) == {"source": "builtin:policy"}


def test_what_is_missing_is_refused_in_words(published_folder, tmp_path):
    data = {"published": "gsm8k", "longest": 20, "rows": {"train": 2}}
    with pytest.raises(InputError, match="rows of train: expected 2; there are 0"):
        made(data, tmp_path / "made")
    (published_folder / "hh_harmless_test.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"EVIDENCE_DATA=.* has no hh_harmless_test\.jsonl\.gz"):
        published_rows("hh_harmless_test")


def test_without_a_folder_the_hub_is_asked(monkeypatch):
    import datasets

    asked = {}
    monkeypatch.delenv("EVIDENCE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda **words: asked.update(words) or [{"a": 1}])
    assert published_rows("gsm8k_train") == [{"a": 1}]
    assert asked == {"path": "openai/gsm8k", "name": "main", "split": "train"}
