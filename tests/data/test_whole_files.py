"""Cache files that were damaged are made again, and nothing else is."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.faults import DAMAGES
from lit_tidpo import PreferenceDataModule
from lit_tidpo.data.whole_files import drop_damaged, remember

ROWS = [{"prompt": f"f{i}(", "chosen": f"{i})", "rejected": f"{i + 1})"} for i in range(8)]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "rows.jsonl")


def tokens(source, cache):
    data = PreferenceDataModule(source, "builtin:policy", cache_dir=str(cache), batch_size=8)
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    return batch.input_ids[batch.index.repeat(2).sort(stable=True).indices]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("which", ["json/**/*.arrow", "tokenised-*.arrow"])
def test_a_damaged_file_is_made_again_with_a_word(source, tmp_path, damage, which):
    expected = tokens(source, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob(which)
    damage(file)
    with pytest.warns(UserWarning, match=rf"{file.name}' is damaged: it is made again"):
        found = tokens(source, tmp_path / "cache")
    assert torch.equal(found, expected)


def test_a_damaged_description_is_no_fault_of_the_source(source, tmp_path):
    expected = tokens(source, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("dataset_info.json")
    file.write_text(file.read_text()[:-20])
    with pytest.warns(UserWarning, match=r"dataset_info.json' is damaged: it is made again"):
        found = tokens(source, tmp_path / "cache")
    assert torch.equal(found, expected)


def test_sound_files_are_used_again(source, tmp_path):
    tokens(source, tmp_path / "cache")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.arrow")}
    assert len(before) == 2
    tokens(source, tmp_path / "cache")
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_file_that_nobody_noted_stays(tmp_path):
    file = tmp_path / "other.arrow"
    file.write_bytes(b"1")
    assert not drop_damaged([file])
    remember([file])
    file.write_bytes(b"2")
    with pytest.warns(UserWarning, match="damaged"):
        assert drop_damaged([file])
    assert list(tmp_path.iterdir()) == []
