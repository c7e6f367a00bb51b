"""The shipped sums: their work is right, and the planted digit is where they say."""

import hashlib
import json
from pathlib import Path

import pytest

import lit_tidpo
from lit_tidpo.assets.build import arithmetic, arithmetic_tokenizer
from lit_tidpo.assets.build.arithmetic import is_right, work
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.models.tokenizer import load_tokenizer

ASSETS = Path(lit_tidpo.__file__).parent / "assets"
FOLDER, POLICY = ASSETS / "arithmetic", ASSETS / "arithmetic_policy"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def splits():
    names = ("train", "validation", "test")
    return {
        name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
        for name in names
    }


@pytest.fixture(scope="module")
def rows(splits):
    return [row for split in splits.values() for row in split]


def test_the_shipped_files_are_those_of_the_builder(tmp_path, capsys):
    arithmetic.main([str(tmp_path)])
    for name, file in MANIFEST["files"].items():
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == file["sha256"]
    assert (tmp_path / "manifest.json").read_text() == (FOLDER / "manifest.json").read_text()
    assert "test.jsonl: 500 rows" in capsys.readouterr().out


def test_no_sum_is_in_two_splits(rows, splits):
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [4000, 500, 500]
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_chosen_work_is_right_and_rejected_work_is_wrong(rows):
    for row in rows:
        first, second, third = map(int, row["prompt"].rstrip("=").split("+"))
        total = first + second
        assert row["chosen"] == f"{first}+{second}={total};{total}+{third}={total + third}"
        assert is_right(row["prompt"], row["chosen"])
        assert not is_right(row["prompt"], row["rejected"])


def test_one_digit_is_planted_and_the_rest_follows_from_it(rows):
    kinds = set()
    for row in rows:
        (start, end), chosen, rejected = row["chosen_span"], row["chosen"], row["rejected"]
        assert row["rejected_span"] == [start, end]
        assert end == start + 1
        assert chosen[:start] == rejected[:start]
        assert abs(int(chosen[start]) - int(rejected[start])) == 1
        first, second = rejected.split(";")
        if row["defect"] == "alone":
            assert chosen[end:] == rejected[end:]
            assert start > len(first)
        else:
            wrong = int(first.partition("=")[2])
            third = int(row["prompt"].rstrip("=").split("+")[2])
            assert start < len(first)
            assert second == f"{wrong}+{third}={wrong + third}"
        kinds.add(row["defect"])
    assert kinds == {"alone", "carried_on"}


def test_work_by_hand():
    assert work((5, 6, 7)) == "5+6=11;11+7=18"
    assert work((95, 6, 7), (1, 0, "2")) == "95+6=101;101+7=208"
    assert is_right("5+6+7=", "nonsense=18")
    assert not is_right("5+6+7=", "5+6=11;11+7=")
    assert is_right("5+6+7=", "18")


def test_a_character_is_a_token(rows, tmp_path):
    pairs = PairTokenizer(load_tokenizer(str(POLICY)), TokenizationOptions(64))
    for row in rows[:50]:
        ids = pairs(row, 0)
        assert len(ids["chosen_ids"]) == len(row["chosen"]) + 1  # its end
        assert pairs.tokenizer.decode(ids["chosen_ids"], skip_special_tokens=True) == row["chosen"]
        assert len(ids["prompt_ids"]) == len(row["prompt"]) + 1  # its start
    arithmetic_tokenizer.main([str(tmp_path)])
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    assert made == json.loads((POLICY / "tokenizer.json").read_text())
