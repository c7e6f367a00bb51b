"""Reading splits from files, folders and the Hub."""

from __future__ import annotations

import gzip
import json

import datasets
import pytest

from lit_tidpo.data.loading import load_splits, pick_split, renamed
from lit_tidpo.data.splits import SplitSource
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError

from .conftest import word_level

ROW = {"prompt": "Q", "chosen": "a", "rejected": "b"}


KINDS = [".json", ".jsonl", ".parquet", ".csv", ".jsonl.gz", ".json.gz", ".json.zst", ".csv.gz"]


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_one_file_is_the_train_split(tmp_path, suffix, streaming):
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        datasets.Dataset.from_list([ROW]).to_parquet(path)
    else:
        text = json.dumps(ROW if "jsonl" in suffix else [ROW])
        text = "prompt,chosen,rejected\nQ,a,b\n" if "csv" in suffix else text
        pack = {"gz": gzip.compress, "zst": _zst}.get(suffix.rpartition(".")[2], bytes)
        path.write_bytes(pack(text.encode()))
    splits = load_splits(str(path), streaming=streaming)
    assert list(splits) == ["train"]
    assert list(splits["train"]) == [ROW]


def _zst(content):
    return pytest.importorskip("zstandard").compress(content)


def test_zst_without_its_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl.zst").write_bytes(b"x")
    monkeypatch.setattr(datasets.config, "ZSTANDARD_AVAILABLE", False)
    with pytest.raises(InputError, match="read by the package zstandard: install it"):
        load_splits(str(tmp_path / "pairs.jsonl.zst"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(json.dumps(ROW).encode())[:20], "cannot be unpacked"),
        (b"nonsense", "cannot be unpacked"),
        (gzip.compress(b'{"a": 1}\n{\n'), r"pairs.jsonl.gz' line 2 is not JSON"),
    ],
    ids=["cut", "not packed", "not JSON"],  # a packed text has the time in it
)
def test_a_broken_compressed_file_is_told(tmp_path, content, words):
    (tmp_path / "pairs.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_splits(str(tmp_path / "pairs.jsonl.gz"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", [list, datasets.Dataset.from_list, None])
def test_data_of_a_program_are_a_source(make, streaming):
    if make is None:
        source = datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])})
    else:
        source = make([ROW])
    assert list(load_splits(source, streaming=streaming)["train"]) == [ROW]
    with pytest.raises(InputError, match="apply to the Hub"):
        load_splits(source, revision="main")


def test_rows_of_clashing_types_are_refused():
    with pytest.raises(InputError, match="given as source are no data set"):
        load_splits([{"chosen": "a", "rejected": "b"}, {"chosen": [1], "rejected": {"a": 2}}])


THEIRS = {"question": "Q", "good": "a", "bad": "b", "system": "S"}
NAMES = {"prompt": "question", "chosen": "good", "rejected": "bad", "system": None}


@pytest.mark.parametrize(
    ("read", "where"),
    [
        (load_splits, "row 1 of the source"),
        (
            lambda rows: PairTokenizer(word_level("a"), TokenizationOptions()).batch(rows, [5, 6]),
            "row 6",
        ),
    ],
)
def test_half_of_a_character_is_told_with_its_row_and_column(read, where):
    rows = [{"prompt": "a", "chosen": f" a{end}", "rejected": " b"} for end in ("", "\ud83d")]
    with pytest.raises(
        InputError, match=rf"{where}: column 'chosen' holds '.ud83d', which is half"
    ):
        read(rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_renamed_or_left_out(write_rows, streaming):
    splits = load_splits(write_rows([THEIRS]), streaming=streaming)
    assert list(renamed(splits, NAMES)["train"]) == [ROW]
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    found = renamed(load_splits(write_rows([ROW], "own.jsonl"), streaming=streaming), swapped)
    assert list(found["train"]) == [{"prompt": "Q", "chosen": "b", "rejected": "a"}]
    found = renamed(
        load_splits(write_rows([ROW], "own.jsonl")), {"prompt": "chosen", "chosen": "rejected"}
    )
    assert list(found["train"]) == [{"prompt": "a", "chosen": "b"}]


def test_names_of_columns_that_there_are_not_are_refused(write_rows):
    splits = load_splits(write_rows([THEIRS]))
    with pytest.raises(InputError, match=r"\['question'\] are not read; expected"):
        renamed(splits, {"question": "prompt"})
    with pytest.raises(InputError, match="split 'train' has no column 'best'; it has"):
        renamed(splits, {"chosen": "best"})


def test_a_folder_of_files_named_like_the_splits(tmp_path, write_rows):
    write_rows([ROW, ROW], "train.jsonl")
    write_rows([ROW], "test.jsonl")
    (tmp_path / "README.md").write_text("# About", encoding="utf-8")
    splits = load_splits(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_from_save_to_disk(tmp_path, streaming):
    data = datasets.Dataset.from_list([ROW])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(tmp_path / "two")
    assert list(load_splits(str(tmp_path / "one"), streaming=streaming)["train"]) == [ROW]
    assert sorted(load_splits(str(tmp_path / "two"), streaming=streaming)) == ["dev", "train"]


def test_messages_in_a_file_stay_lists_of_messages(write_rows):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}]
    path = write_rows([{"chosen": turns, "rejected": turns}])
    assert load_splits(path)["train"][0]["chosen"] == turns


def test_a_hub_name_is_passed_on(monkeypatch):
    calls = []

    class Builder:
        def as_streaming_dataset(self):
            return datasets.DatasetDict(train=datasets.Dataset.from_list([ROW]))

    def build(**options):
        calls.append(options)
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    assert len(load_splits("owner/name", "config", "main", "cache", True)["train"]) == 1
    assert calls == [
        {"path": "owner/name", "name": "config", "revision": "main", "cache_dir": "cache"}
    ]


def test_a_hub_failure_tells_its_cause(monkeypatch):
    def load(**options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(InputError, match=r"'owner/name' cannot be read.*no route"):
        load_splits("owner/name")


def test_changed_content_is_read_again(write_rows):
    assert len(load_splits(write_rows([ROW]))["train"]) == 1
    assert len(load_splits(write_rows([ROW, ROW]))["train"]) == 2


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "~/missing/folder"])
def test_missing_path(name):
    with pytest.raises(InputError, match="missing"):
        load_splits(name)


def test_empty_file(write_rows):
    with pytest.raises(InputError, match=r"pairs.jsonl' is empty"):
        load_splits(write_rows([]))


def test_folder_without_data(tmp_path):
    with pytest.raises(InputError, match="holds no file of"):
        load_splits(str(tmp_path))


def test_unknown_kind_of_file(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("a b", encoding="utf-8")
    with pytest.raises(InputError, match=r"not a file of .*csv.*also as .gz or .zst"):
        load_splits(str(path))


def test_malformed_json_lines_name_file_and_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW) + "\n{'chosen': 1}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"pairs.jsonl' line 2 is not JSON"):
        load_splits(str(path))


def test_an_unreadable_folder_does_not_blame_its_valid_files(tmp_path, write_rows):
    write_rows([ROW], "train.jsonl")
    (tmp_path / "manifest.json").write_text(json.dumps({"a": 1}, indent=1), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("not JSON", encoding="utf-8")
    with pytest.raises(InputError, match=r"test.jsonl' line 1 is not JSON"):
        load_splits(str(tmp_path))


def test_malformed_json_list_names_file_and_line(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text('[{"chosen": "a"},\n {"chosen": }]', encoding="utf-8")
    with pytest.raises(InputError, match=r"pairs.json' line 2 is not JSON"):
        load_splits(str(path))


def test_options_that_do_not_apply(write_rows):
    path = write_rows([ROW])
    with pytest.raises(InputError, match="revision='main' applies to the Hub"):
        load_splits(path, revision="main")
    with pytest.raises(InputError, match="name='x' picks a configuration"):
        load_splits(path, name="x")


def test_unknown_split_lists_the_known_ones(write_rows):
    splits = load_splits(write_rows([ROW]))
    with pytest.raises(InputError, match=r"no split 'test'; they have \['train'\]"):
        pick_split(splits, "test", "pairs.jsonl")


def test_missing_column_lists_the_known_ones(write_rows):
    splits = load_splits(write_rows([{"prompt": "Q", "chosen": "a"}]))
    with pytest.raises(InputError, match=r"no column 'rejected'; it has \['chosen', 'prompt'\]"):
        pick_split(splits, "train", "pairs.jsonl")


def test_a_split_without_rows():
    empty = datasets.Dataset.from_dict({"chosen": [], "rejected": []})
    with pytest.raises(InputError, match="has no rows"):
        pick_split({"train": empty}, "train", "x")


def test_a_file_in_another_encoding_is_named(tmp_path, gpt2_like):
    file = tmp_path / "train.jsonl"
    row = {"prompt": "Q", "chosen": "\u00e9", "rejected": "b"}
    file.write_bytes((json.dumps(row, ensure_ascii=False) + "\n").encode("latin-1") * 3)
    with pytest.raises(InputError, match=r"train.jsonl' .*not UTF-8"):
        SplitSource(str(file)).tokenised(
            load_splits(str(file)), "train", PairTokenizer(gpt2_like, TokenizationOptions())
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_answers_in_a_csv_file_are_text(tmp_path, streaming):
    """pandas would make numbers of answers to sums, and nothing of ``None`` and ``N/A``."""
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,score_chosen\n2+2?,4,5,1.5\nAny?,None,N/A,2\n")
    first, second = load_splits(str(file), streaming=streaming)["train"]
    assert first == {"prompt": "2+2?", "chosen": "4", "rejected": "5", "score_chosen": 1.5}
    assert (second["chosen"], second["rejected"]) == ("None", "N/A")
