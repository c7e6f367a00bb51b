"""Pairs and demonstrations made of published data: GSM8K with model solutions, and HH.

Files lie in the folder that ``EVIDENCE_DATA`` names; without it they come from the Hub, and the
model solutions from the repository of their authors.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from lit_tidpo.data.rows import normal_row
from lit_tidpo.errors import InputError

Row = dict[str, Any]
FOLDER = "EVIDENCE_DATA"
_SOLUTIONS = (
    "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
    "example_model_solutions.jsonl"
)
_SOURCES: dict[str, dict[str, str]] = {  # by file: arguments of datasets.load_dataset
    "gsm8k_train": {"path": "openai/gsm8k", "name": "main", "split": "train"},
    "gsm8k_model_solutions": {"path": "json", "data_files": _SOLUTIONS, "split": "train"},
    "hh_harmless_test": {
        "path": "Anthropic/hh-rlhf", "data_dir": "harmless-base", "split": "test"
    },
}  # fmt: skip
_RESULT = re.compile(r"<<[^<>]*=([^<>=]*)>>")
_ANSWER = re.compile(r"(?:####|A:) *\$?(-?[\d,]*\.?\d+)")


def published_rows(file: str) -> list[Row]:
    """The rows of a file as they were published.

    Raises:
        InputError: If the folder that ``EVIDENCE_DATA`` names lacks it.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        from datasets import load_dataset

        return [dict(row) for row in load_dataset(**_SOURCES[file])]
    path = Path(folder) / f"{file}.jsonl.gz"
    if not path.is_file():
        raise InputError(
            f"{FOLDER}={folder!r} has no {path.name}: put it there, or unset {FOLDER} to read "
            f"{_SOURCES[file]['path']} from the Hub"
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gsm8k_demonstrations() -> Iterator[Row]:
    """Problems with worked answers; the rejected response is a stopgap that SFT does not read."""
    for number, row in enumerate(published_rows("gsm8k_train")):
        chosen = row["answer"].replace("#### ", "A: ")
        yield {"group": number, "prompt": f"{row['question']}\n", "chosen": chosen, "rejected": "?"}


def gsm8k_pairs() -> Iterator[Row]:
    """All distinct pairs of a right and a wrong model solution of one problem.

    ``chosen_spans`` and ``rejected_spans`` mark the line with which each departs from the other:
    of the wrong solution the first line with a result that no right solution of the problem has,
    of the right one the first with a result that the wrong one lacks. Pairs without such a line
    in the wrong solution are left out.
    """
    for number, row in enumerate(published_rows("gsm8k_model_solutions")):
        solved = [each for each in row.values() if isinstance(each, dict)]
        right, wrong = (
            sorted({each["solution"] for each in solved if each["is_correct"] == is_right})
            for is_right in (True, False)
        )
        known = {result for text in (row["ground_truth"], *right) for result in results(text)}
        for chosen, rejected in product(right, wrong):
            span = departure(rejected, known)
            if span is not None:
                own = departure(chosen, {*results(rejected)})
                yield {
                    "group": number,
                    "prompt": f"{row['question']}\n",
                    "chosen": chosen,
                    "rejected": rejected,
                    "answer": answer(row["ground_truth"]),
                    "module": f"problem {number}",
                    "rejected_span": span,
                    "chosen_spans": [] if own is None else [own],
                    "rejected_spans": [span],
                }


def hh_pairs() -> Iterator[Row]:
    """Dialogues that go on in two ways; a group has the same first words of the human."""
    groups: dict[str, int] = {}
    for number, row in enumerate(published_rows("hh_harmless_test")):
        pair = normal_row(row, number)
        if not pair.problem:
            opening = str(pair.prompt).split("\n\nAssistant:")[0]
            group = groups.setdefault(opening, len(groups))
            opened = {"group": group, "module": f"opening {group}", "prompt": pair.prompt}
            yield {**opened, **pair.responses}


PUBLISHED: dict[str, Callable[[], Iterable[Row]]] = {
    "gsm8k_demonstrations": gsm8k_demonstrations,
    "gsm8k": gsm8k_pairs,
    "hh": hh_pairs,
}


def results(solution: str) -> list[float | str]:
    """Results of the calculations ``<<...=result>>``, in order.

    Example:
        >>> results("He has 3*4=<<3*4=12>>12 and $<<12+.5=12.50>>12.50 more")
        [12.0, 12.5]
    """
    return [_number(each) for each in _RESULT.findall(solution)]


def departure(solution: str, known: set[float | str]) -> list[int] | None:
    r"""Ends, in characters, of the first line with a result that is not known; None without one.

    Example:
        >>> departure("1+1=<<1+1=2>>2\n2+2=<<2+2=5>>5\nA: 5", {2.0, 4.0})
        [15, 29]
    """
    start = 0
    for line in solution.split("\n"):
        if not {*results(line)} <= known:
            return [start, start + len(line)]
        start += len(line) + 1
    return None


def answer(solution: str) -> float | str | None:
    """The number behind the last ``A:`` or ``####``; None without one."""
    found = _ANSWER.findall(solution)
    return _number(found[-1]) if found else None


def _number(text: str) -> float | str:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text.strip()


def made(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write what a task wants of published data, unless it is there, as ``source`` of its pairs.

    Args:
        data: As in a grid: ``published``, one of :data:`PUBLISHED`; ``rows`` by split; ``longest``,
            the most characters of prompt and longer response. Others are given back as they are.
        folder: Where data are kept.

    Raises:
        InputError: If there are not so many rows.
    """
    if "published" not in data:
        return data
    text = json.dumps(data, sort_keys=True).encode() + Path(__file__).read_bytes()
    target = folder / f"{data['published']}-{hashlib.sha256(text).hexdigest()[:8]}"
    if not target.is_dir():
        part = folder / f"{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        splits = split_rows(PUBLISHED[data["published"]](), data["rows"], data["longest"])
        for split, rows in splits.items():
            (part / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        part.rename(target)  # it is there whole or not at all
    return {"source": str(target)}


def split_rows(rows: Iterable[Row], wanted: dict[str, int], longest: int) -> dict[str, list[Row]]:
    """Deal rows to splits, whole groups in random order, the last one of a split cut."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        sides = (row["chosen"], row["rejected"])
        if len(row["prompt"]) + max(map(len, sides)) <= longest and sides[0] != sides[1]:
            groups.setdefault(row["group"], []).append(row)
    order = sorted(groups)
    random.Random(0).shuffle(order)
    left, splits = iter(order), {}
    for split, number in sorted(wanted.items()):  # test before train: it stays as others grow
        dealt: list[Row] = []
        while len(dealt) < number:
            group = next(left, None)
            if group is None:
                raise InputError(f"rows of {split}: expected {number}; there are {len(dealt)}")
            dealt += groups[group]
        splits[split] = dealt[:number]
    return splits
