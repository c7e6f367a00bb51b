"""The pairs of a cell: those of a shipped set, with labels flipped or defects marked."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.locations import locate
from lit_tidpo.models.tokenizer import load_tokenizer

Row = dict[str, Any]
SIDES = ("chosen", "rejected")


def prepared(
    data: dict[str, Any], weights: str, flips: float, seed: int, tokenizer: str, folder: Path
) -> str:
    """Write the data of a cell, unless they are there.

    Args:
        data: ``source`` of the pairs; ``longest``: tokens of the longest pair to take.
        weights: ``planted`` marks the tokens of the defect.
        flips: Share of the training pairs whose labels are swapped.
        seed: Picks the flipped pairs.
        tokenizer: Where the policy's tokenizer is.
        folder: Where data are kept.

    Returns:
        The source as it is, or a folder with a file of each split.
    """
    source, longest = Path(locate(data["source"])), data.get("longest")
    changes = [f"longest{longest}"] if longest else []
    changes += [weights] if weights else []
    changes += [f"flips{flips:g}-seed{seed}"] if flips else []
    target = folder / "-".join([source.name, *changes, _digest(source)])
    if target.is_dir() or not changes:
        return str(target) if changes else data["source"]
    part, pairs = folder / f"{target.name}.part", pair_tokenizer(tokenizer)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    unflipped = prepared(data, weights, 0.0, seed, tokenizer, folder) if flips else data["source"]
    for split in ("train", "validation", "test"):
        rows = rows_of(unflipped, split)
        if flips:
            rows = flipped(rows, flips, seed) if split == "train" else rows
        else:
            rows = [row for row in rows if not longest or pairs(row, 0)["length"] <= longest]
            rows = [planted_weights(row, pairs) for row in rows] if weights else rows
        (part / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.rename(target)  # it is there whole or not at all
    return str(target)


@cache
def _digest(folder: Path) -> str:
    files = [Path(__file__), *sorted(folder.glob("*.jsonl"))]  # how and of what data are made
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def rows_of(source: str, split: str) -> list[Row]:
    """The pairs of a split of a data folder."""
    text = (Path(locate(source)) / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def pair_tokenizer(source: str, max_length: int = 1024) -> PairTokenizer:
    """What turns rows into token ids, as training does."""
    return PairTokenizer(load_tokenizer(source), TokenizationOptions(max_length))


def flipped(rows: list[Row], share: float, seed: int) -> list[Row]:
    """Swap all that is chosen and rejected of a share of the rows, which is rounded."""
    picked = {*random.Random(seed).sample(range(len(rows)), round(share * len(rows)))}
    pairs = [[f"{side}{field}" for side in SIDES] for field in ("", "_span", "_weights")]
    other = {name: names[1 - i] for names in pairs for i, name in enumerate(names)}
    return [
        {name: row[other.get(name, name)] for name in row} if number in picked else row
        for number, row in enumerate(rows)
    ]


def planted_weights(row: Row, pairs: PairTokenizer) -> Row:
    """Mark the defect: weight 1 on tokens that overlap the row's spans, 0 elsewhere."""
    marked = {f"{side}_weights": marks(row, side, pairs)[1] for side in SIDES}
    return {**row, **{name: [float(mark) for mark in each] for name, each in marked.items()}}


def marks(row: Row, side: str, pairs: PairTokenizer) -> tuple[list[tuple[int, int]], list[bool]]:
    """Start and end of each token of a response, in its characters, and whether it is marked.

    The end of the sequence is the last token. Those that overlap the row's span of the side are
    marked: they hold the defect.
    """
    text, start = row["prompt"] + row[side], len(row["prompt"])
    encoded = pairs.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end = (len(row[side]), len(row[side]))
    places = [*((max(a - start, 0), b - start) for a, b in encoded["offset_mapping"]), end]
    places = places[-len(pairs(row, 0)[f"{side}_ids"]) :]
    first, last = row[f"{side}_span"]
    return places, [a < last and b > first for a, b in places]
