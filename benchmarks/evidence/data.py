"""The pairs of a cell: those of a shipped set, with labels flipped or defects marked."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evidence.grid import Task, Variant
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.locations import locate
from lit_tidpo.models.tokenizer import load_tokenizer

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")
_SWAPPED = (("chosen", "rejected"), ("chosen_span", "rejected_span"))


def prepared(task: Task, variant: Variant, seed: int, tokenizer: str, folder: Path) -> Path:
    """Write the data of a cell, unless they are there.

    Args:
        task: Whose data.
        variant: What is done to them. Labels are flipped in the training split alone.
        seed: Picks the flipped pairs.
        tokenizer: Where the policy's tokenizer is.
        folder: Where data are kept.

    Returns:
        The folder of ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
    """
    longest = task.data.get("longest")
    source, name = Path(locate(task.data["source"])), Path(task.config).stem
    if longest is not None:
        source = _derived(
            source,
            folder,
            f"{name}-{longest}",
            lambda split, rows: _short(rows, longest, tokenizer),
        )
    if variant.weights:
        name += "-planted"
        source = _derived(source, folder, name, lambda split, rows: _marked(rows, tokenizer))
    if variant.flips:
        source = _derived(
            source,
            folder,
            f"{name}-flips{variant.flips:g}-seed{seed}",
            lambda split, rows: flipped(rows, variant.flips, seed) if split == "train" else rows,
        )
    return source


def _derived(
    source: Path, folder: Path, name: str, change: Callable[[str, list[Row]], list[Row]]
) -> Path:
    """Write changed splits into a folder that is there whole or not at all."""
    target = folder / f"{name}-{digest(source)[:8]}"
    if target.is_dir():
        return target
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for split in SPLITS:
        with (source / f"{split}.jsonl").open(encoding="utf-8") as file:
            rows = change(split, [json.loads(line) for line in file])
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (part / f"{split}.jsonl").write_text(text, encoding="utf-8")
    part.rename(target)
    return target


def _short(rows: list[Row], longest: int, tokenizer: str) -> list[Row]:
    pairs = _tokenizer(tokenizer)
    return [row for row in rows if pairs(row, 0)["length"] <= longest]


def _marked(rows: list[Row], tokenizer: str) -> list[Row]:
    pairs = _tokenizer(tokenizer)
    return [planted_weights(row, pairs) for row in rows]


def _tokenizer(source: str) -> PairTokenizer:
    return PairTokenizer(load_tokenizer(source), TokenizationOptions(1024))


def flipped(rows: list[Row], share: float, seed: int) -> list[Row]:
    """Swap chosen and rejected of a share of the rows.

    Args:
        rows: Pairs.
        share: Of the rows, from 0 to 1; the number is rounded.
        seed: Picks them.

    Returns:
        New rows in the same order.
    """
    picked = {*random.Random(seed).sample(range(len(rows)), round(share * len(rows)))}
    return [_swapped(row) if number in picked else row for number, row in enumerate(rows)]


def _swapped(row: Row) -> Row:
    names = [*_SWAPPED, ("chosen_weights", "rejected_weights")]
    exchanged = {a: row[b] for one in names for a, b in (one, one[::-1]) if b in row}
    return {**row, **exchanged}


def planted_weights(row: Row, pairs: PairTokenizer) -> Row:
    """Mark the defect: weight 1 on tokens that overlap the row's spans, 0 elsewhere.

    Args:
        row: A pair with ``chosen_span`` and ``rejected_span``, in characters of the response.
        pairs: Tokenizer of the policy.

    Returns:
        The row with ``chosen_weights`` and ``rejected_weights``, one per token of the response as
        training sees it, its end included.
    """
    ids = pairs(row, 0)
    start = len(row["prompt"])
    weights = {}
    for side in ("chosen", "rejected"):
        text = row["prompt"] + row[side]
        encoded = pairs.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        first, last = (start + place for place in row[f"{side}_span"])
        marks = [float(a < last and b > first) for a, b in encoded["offset_mapping"]] + [0.0]
        weights[f"{side}_weights"] = marks[-len(ids[f"{side}_ids"]) :]
    return {**row, **weights}


def digest(folder: Path) -> str:
    """Digest of the files of a data folder."""
    whole = hashlib.sha256()
    for split in SPLITS:
        whole.update((folder / f"{split}.jsonl").read_bytes())
    return whole.hexdigest()
