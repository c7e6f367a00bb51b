"""Data of cells: flips, marks and selections."""

from pathlib import Path

import pytest

from benchmarks.evidence.data import flipped, pair_tokenizer, planted_weights, prepared, rows_of


@pytest.fixture(scope="module")
def pairs():
    return pair_tokenizer("builtin:policy")


def short(folder, weights="", flips=0.0, seed=0):
    """The code data up to 96 tokens."""
    data = {"source": "builtin:stdlib_defects", "longest": 96}
    return prepared(data, weights, flips, seed, "builtin:policy", folder)


def test_a_share_of_the_labels_is_flipped_with_all_that_belongs_to_them():
    rows = [
        {"prompt": str(n), "chosen": "c", "rejected": "r", "chosen_span": [0, 1],
         "rejected_span": [2, 3], "chosen_weights": [1.0], "rejected_weights": [0.0]}
        for n in range(50)
    ]  # fmt: skip
    changed = flipped(rows, 0.2, seed=0)
    moved = [new for new, old in zip(changed, rows, strict=True) if new != old]
    assert len(moved) == 10
    assert [row["prompt"] for row in changed] == [row["prompt"] for row in rows]
    for row in moved:
        assert (row["chosen"], row["rejected"]) == ("r", "c")
        assert (row["chosen_span"], row["rejected_span"]) == ([2, 3], [0, 1])
        assert (row["chosen_weights"], row["rejected_weights"]) == ([0.0], [1.0])
    assert flipped(rows, 0.2, seed=0) == changed
    assert flipped(rows, 0.2, seed=1) != changed
    assert flipped(rows, 0.0, seed=0) == rows


def test_the_tokens_of_a_defect_are_marked(pairs):
    row = {
        "prompt": 'def f(a):\n    """F."""',
        "chosen": "\n    return a + 1",
        "rejected": "\n    return a - 1",
        "chosen_span": [14, 15],
        "rejected_span": [14, 15],
    }
    marked = planted_weights(row, pairs)
    for side in ("chosen", "rejected"):
        ids, weights = pairs(row, 0)[f"{side}_ids"], marked[f"{side}_weights"]
        assert len(ids) == len(weights)
        tokens = [pairs.tokenizer.decode([i]) for i, w in zip(ids, weights, strict=True) if w]
        assert [token.strip() for token in tokens] == [row[side][14]]
        assert weights.count(1.0) == 1
        assert weights[-1] == 0.0  # the end


def test_shipped_pairs_pass_as_supplied_weights(pairs, tmp_path):
    """The tokenizer of the data checks that there is one weight per token."""
    folder = short(tmp_path, weights="planted")
    rows = rows_of(folder, "test")
    assert len(rows) > 20
    for row in rows:
        ids = pairs(row, 0)
        assert max(ids["rejected_weights"]) == 1.0
        assert ids["length"] <= 96


def test_only_training_labels_are_flipped_and_files_are_made_once(tmp_path):
    plain = short(tmp_path)
    folder = short(tmp_path, flips=0.4, seed=3)
    assert folder != short(tmp_path, flips=0.4, seed=4)
    for split in ("validation", "test"):
        assert rows_of(folder, split) == rows_of(plain, split)
    before, after = rows_of(plain, "train"), rows_of(folder, "train")
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    assert changed == round(0.4 * len(before))
    made = (Path(folder) / "train.jsonl").stat().st_mtime_ns
    short(tmp_path, flips=0.4, seed=3)
    assert (Path(folder) / "train.jsonl").stat().st_mtime_ns == made


def test_data_without_a_change_are_taken_where_they_are(tmp_path):
    data = {"source": "builtin:arithmetic"}
    assert prepared(data, "", 0.0, 0, "builtin:arithmetic_policy", tmp_path) == data["source"]
    assert [*tmp_path.iterdir()] == []
