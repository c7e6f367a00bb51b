"""Make the shipped arithmetic set: sums worked in steps, and the same work with one wrong digit.

Run ``python -m lit_tidpo.assets.build.arithmetic FOLDER``; ``--sft FOLDER`` writes the pairs that
the shipped policy was trained on, too. The same call makes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Terms = tuple[int, int, int]

SEED = 0
ROWS = {"validation": 500, "test": 500, "train": 4000}
SFT_ROWS = {"validation": 500, "train": 34_000}
TERMS = (10, 999)


def work(terms: Terms, digit: tuple[int, int, str] | None = None) -> str:
    """Work a sum out, from left to right.

    Args:
        terms: What to add.
        digit: A digit to write in the place of the right one: number of the step (0 or 1), place in
            its result, and the digit. What follows is worked out from what was written.

    Returns:
        The two steps.

    Example:
        >>> work((348, 76, 905))
        '348+76=424;424+905=1329'
        >>> work((348, 76, 905), (0, 1, "3"))
        '348+76=434;434+905=1339'
    """
    steps, total = [], terms[0]
    for number, term in enumerate(terms[1:]):
        result = str(total + term)
        if digit is not None and digit[0] == number:
            result = result[: digit[1]] + digit[2] + result[digit[1] + 1 :]
        steps.append(f"{total}+{term}={result}")
        total = int(result)
    return ";".join(steps)


def is_right(prompt: str, response: str) -> bool:
    """Tell whether a response ends in the sum that the prompt asks for.

    Args:
        prompt: ``a+b+c=``.
        response: The work, or the sum at once; what counts is the number after the last ``=``.

    Example:
        >>> is_right("348+76+905=", "348+76=424;424+905=1329")
        True
    """
    return response.rpartition("=")[2] == str(sum(map(int, prompt.rstrip("=").split("+"))))


def preference_row(terms: Terms, draw: random.Random) -> Row:
    """The pair of a sum: right work, and work in which one digit is wrong.

    The wrong digit is one off, as after a carry that was forgotten or imagined, and hence never the
    last of a number. In the first result it is carried on; in the second it stands alone.
    """
    chosen = work(terms)
    step = draw.randrange(2)
    result = chosen.split(";")[step].partition("=")[2]
    place = draw.randrange(len(result) - 1)
    right = int(result[place])
    least = 1 if place == 0 else 0  # a number does not start with 0
    wrong = draw.choice([d for d in (right - 1, right + 1) if least <= d <= 9])
    rejected = work(terms, (step, place, str(wrong)))
    start = (chosen.index("=") if step == 0 else chosen.rindex("=")) + 1 + place
    return {
        "prompt": "+".join(map(str, terms)) + "=",
        "chosen": chosen,
        "rejected": rejected,
        "chosen_span": [start, start + 1],
        "rejected_span": [start, start + 1],
        "defect": ("carried_on", "alone")[step],
        "id": hashlib.sha256(f"{chosen}\0{rejected}".encode()).hexdigest()[:12],
    }


def preference_rows() -> Iterator[Row]:
    """Endless pairs, no sum twice."""
    # Two generators: another way to plant defects leaves the sums as they are.
    sums, defects = random.Random(SEED), random.Random(SEED + 1)
    seen = set()
    while True:
        terms = (sums.randint(*TERMS), sums.randint(*TERMS), sums.randint(*TERMS))
        if terms not in seen:
            seen.add(terms)
            yield preference_row(terms, defects)


def write(folder: Path, sizes: dict[str, int], rows: Iterator[Row]) -> dict[str, Any]:
    """Write the next rows, split by split.

    Args:
        folder: Where to write.
        sizes: Rows of each split.
        rows: Where they come from.

    Returns:
        Rows, size, digest and kinds of defect of each file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, size in sizes.items():
        own = [next(rows) for _ in range(size)]
        data = "".join(json.dumps(row) + "\n" for row in own).encode()
        (folder / f"{split}.jsonl").write_bytes(data)
        files[f"{split}.jsonl"] = {
            "rows": size,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "defects": dict(sorted(Counter(row["defect"] for row in own).items())),
        }
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the set and print a summary."""
    parser = argparse.ArgumentParser(description="Make the preference set of worked sums.")
    parser.add_argument("folder", type=Path, help="where to write the files")
    parser.add_argument("--sft", type=Path, help="where to write the pairs of the shipped policy")
    options = parser.parse_args(arguments)
    rows = preference_rows()
    files = write(options.folder, ROWS, rows)
    manifest = {"options": {"seed": SEED, "terms": list(TERMS)}, "files": files}
    (options.folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if options.sft is not None:
        files |= {f"sft/{name}": file for name, file in write(options.sft, SFT_ROWS, rows).items()}
    for name, file in files.items():
        print(f"{name}: {file['rows']} rows, {file['bytes']:,} bytes, {file['defects']}")


if __name__ == "__main__":
    main()
