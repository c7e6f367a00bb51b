"""What a run would see of a data set, for people to read."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from statistics import quantiles
from typing import Any

from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.shapes import PAIR, shape_of
from lit_tidpo.data.tokenised import blank_row, check_kind, sides_of
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.errors import InputError

_UNCUT = 2**31 - 1
_BINS, _BAR, _LISTED, _TEXT = 12, 40, 8, 600
"""Lines and widest bar of the histogram; row numbers, and characters of a text, that are shown."""
_BARS = " |context: ", "| "


@dataclass
class Overview:
    """What became of the rows of a split, and how long they are.

    Attributes:
        report: Counts as of a run.
        max_length: Most tokens of prompt and response together.
        shapes: Rows by the name of their shape.
        lengths: Tokens of the prompts, the responses, and each row's ``longest`` sequence, uncut.
        problems: Numbers of the rows that cannot be used, by what is wrong with them.
        repeated: Numbers of rows that came before, with the number of the first.
        swapped: Numbers of rows that came before with the better response called the worse, or
            with the other label.
        examples: Texts of the first usable rows, by number.
        refused: What a run would end in at the first malformed row; empty if there is none.
    """

    report: PreparationReport
    max_length: int
    shapes: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    problems: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    repeated: dict[int, int] = field(default_factory=dict)
    swapped: dict[int, int] = field(default_factory=dict)
    examples: dict[int, dict[str, str]] = field(default_factory=dict)
    refused: str = ""

    def lines(self) -> Iterator[str]:
        """The overview as lines of text."""
        found = ", ".join(f"{count} {name}" for name, count in self.shapes.most_common())
        yield f"split {self.report.split!r}: {self.report.rows} rows, shapes: {found}"
        yield f"usable: {self.report.counts}"
        for problem, numbers in sorted(self.problems.items(), key=lambda each: -len(each[1])):
            yield f"  {len(numbers)} {problem}: {_rows(numbers)}"
        if self.repeated:
            yield f"  {len(self.repeated)} rows came before: {_rows(self.repeated)}"
        if self.swapped:
            how = "the other label" if self.report.is_single else "chosen and rejected swapped"
            yield f"  {len(self.swapped)} rows came before with {how}: {_rows(self.swapped)}"
        if self.report.usable:
            yield from self._lengths()
        for number, texts in self.examples.items():
            prompt, *responses = texts.items()
            yield f"row {number}, prompt | response:"
            before = _ending(prompt[1])
            for name, text in responses:
                yield f"  {name:9} {before} | {_beginning(text)}"
                before = "..."

    def check(self, policy: InvalidRows, label: str) -> None:
        """Refuse what a run would refuse.

        Args:
            policy: What a run does with invalid rows: ``raise`` or ``drop``.
            label: What messages call the source.

        Raises:
            InputError: As of a run.
        """
        if self.refused:
            raise InputError(
                f"{self.refused} (split {self.report.split!r} of {label!r}; its rows count from 0)"
            )
        self.report.check(policy)

    def _lengths(self) -> Iterator[str]:
        yield f"tokens{'least':>14}{'median':>8}{'95 %':>8}{'most':>8}"
        for name, values in self.lengths.items():
            marks = quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 19
            yield f"  {name:10}{min(values):8}{marks[9]:8.0f}{marks[18]:8.0f}{max(values):8}"
        yield "prompt and longer response, tokens:"
        yield from histogram(self.lengths["longest"])
        cut = self.report.truncated
        told = (
            ", ".join(f"{count} {side}" for side, count in cut.items())
            if any(cut.values())
            else "none"
        )
        yield f"cut at max_length={self.max_length}: {told}"
        yield from self.report.notes()


def overview(
    rows: Iterable[Mapping[str, Any]],
    split: str,
    tokenise: PairTokenizer,
    show: int = 3,
    sides: tuple[str, ...] = PAIR,
) -> Overview:
    """Look through the rows of a split.

    Args:
        rows: The raw rows.
        split: Its name.
        tokenise: Tokenizer and lengths of the run.
        show: Rows whose texts are shown.
        sides: Names of the responses of each row.

    Returns:
        The overview; rows that a run would stop at are among its problems.
    """
    found = Overview(PreparationReport(split), tokenise.options.max_length)
    uncut = dataclasses.replace(tokenise.options, max_length=_UNCUT, max_prompt_length=None)
    whole = PairTokenizer(tokenise.tokenizer, uncut)
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows):
        shape = shape_of(frozenset(name for name, value in row.items() if value is not None))
        found.shapes["none" if shape is None else shape.name] += 1
        try:
            pair, own = tokenise(row, number), whole(row, number)
            check_kind(pair, sides, number)
        except InputError as error:
            found.refused = found.refused or str(error)
            pair = own = blank_row(sides, number, _kind(str(error)))
        found.report.add(pair)
        if pair["problem"]:
            found.problems[pair["problem"]].append(number)
            continue
        found.report.show_shift(pair, tokenise.tokenizer)
        parts = ("prompt", *sides_of(pair))
        for part in parts:
            found.lengths[part].append(len(own[f"{part}_ids"]))
        found.lengths["longest"].append(own["length"])
        key, opposite = _keys(own)
        if key in seen:
            found.repeated[number] = seen[key]
        elif opposite in seen:
            found.swapped[number] = seen[opposite]
        seen.setdefault(key, number)
        if len(found.examples) < show:
            decode = tokenise.tokenizer.decode
            texts = {part: _text(pair, part, decode) for part in parts}
            if found.report.is_single:
                name = "desirable" if pair["label"] else "undesirable"
                texts[name] = texts.pop(parts[1])
            found.examples[number] = texts
    return found


def _text(pair: Mapping[str, Any], part: str, decode: Callable[[list[int]], Any]) -> str:
    """Text of a prompt or response, of which context stands between bars."""
    ids, context = pair[f"{part}_ids"], pair.get(f"{part}_context")
    if context is None:
        return str(decode(ids))
    runs = groupby(zip(ids, context, strict=True), key=lambda each: each[1])
    texts = ((others, str(decode([token for token, _ in run]))) for others, run in runs)
    return "".join(f"{_BARS[0]}{text}{_BARS[1]}" if others else text for others, text in texts)


def _keys(row: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What equal rows have in common, and what rows have that say the opposite."""
    prompt, *responses = (tuple(row[f"{part}_ids"]) for part in ("prompt", *sides_of(row)))
    if "label" in row:
        return (prompt, *responses, row["label"]), (prompt, *responses, not row["label"])
    return (prompt, *responses), (prompt, *responses[::-1])


def histogram(values: list[int]) -> list[str]:
    """Counts of whole numbers above 0, as lines with bars.

    Example:
        >>> histogram([1, 1, 3])[0].split()
        ['1-1', '########################################', '2']
    """
    width = -(-max(values) // _BINS)
    counts = Counter((value - 1) // width for value in values)
    most = max(counts.values())
    return [
        f"{f'{place * width + 1}-{(place + 1) * width}':>13} "
        f"{'#' * -(-counts[place] * _BAR // most)} {counts[place]}"
        for place in range(min(counts), max(counts) + 1)
    ]


def _kind(message: str) -> str:
    """What is wrong with a row, without its number and content."""
    return re.sub(r"^row \d+:? ", "", message).split("; got ")[0]


def _rows(numbers: Iterable[int]) -> str:
    listed = list(numbers)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"row{'s' * (len(listed) > 1)} {', '.join(map(str, listed[:_LISTED]))}{more}"


def _beginning(text: str) -> str:
    return repr(text) if len(text) <= _TEXT else f"{text[:_TEXT]!r} ..."


def _ending(text: str) -> str:
    return repr(text) if len(text) <= _TEXT else f"... {text[-_TEXT:]!r}"
