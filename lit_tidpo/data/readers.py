"""Rows of each shape, brought to the columns of their prompt and responses.

A reader gets a row, its number and the options, and gives the row with these columns, and what
keeps it from being trained on, or nothing. It raises ``InputError`` at a malformed row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_tidpo.data.ranked import RowOptions, best_and_lower
from lit_tidpo.data.turns import spoken
from lit_tidpo.errors import InputError

Row = Mapping[str, Any]


def as_it_is(row: Row, number: int, options: RowOptions) -> tuple[Row, str]:
    """A row whose columns are ours already."""
    return row, ""


def from_sharegpt(row: Row, number: int, options: RowOptions) -> tuple[Row, str]:
    """Turns before two responses."""
    sides = {side: spoken(row[side]) for side in ("chosen", "rejected")}
    return {**row, "prompt": row["conversations"], **sides}, ""


def from_alpaca(row: Row, number: int, options: RowOptions) -> tuple[Row, str]:
    """An instruction with two outputs."""
    if row.get("chosen") is not None and row.get("rejected") is not None:
        outputs = [row["chosen"], row["rejected"]]
    else:
        outputs = row["output"]
    if not (isinstance(outputs, list) and len(outputs) == 2):
        raise InputError(
            f"row {number}: field 'output' must be two responses, the better one first, where "
            f"there is no 'chosen' and 'rejected'; got {outputs!r:.80}"
        )
    chosen, rejected = map(spoken, outputs)
    prompt = _instruction(row, number)
    return {**row, "prompt": prompt, "chosen": chosen, "rejected": rejected}, ""


def from_ranked(row: Row, number: int, options: RowOptions) -> tuple[Row, str]:
    """The best of ranked completions against a lower one."""
    chosen, rejected, problem = best_and_lower(row, number, options)
    prompt = row["instruction"] if row.get("instruction") is not None else row.get("prompt")
    sides = {"chosen": spoken(chosen), "rejected": spoken(rejected)}
    return {**row, "prompt": prompt or None, **sides}, problem


def from_labelled_alpaca(row: Row, number: int, options: RowOptions) -> tuple[Row, str]:
    """An instruction with an output that is desirable or not."""
    completion = spoken(row["output"])
    asked = {**row, "prompt": _instruction(row, number), "completion": completion}
    return from_labelled(asked, number, options)


def from_labelled(row: Row, number: int, options: RowOptions) -> tuple[Row, str]:
    """Bring a row with a ``label`` to the columns ``prompt``, ``completion`` and ``label``.

    Args:
        row: ``completion`` with its ``prompt``; or a whole conversation, ``messages`` or
            ``conversations``, whose last turn is the response.
        number: Position of the row in its split, for messages.
        options: Nothing here is a choice.

    Raises:
        InputError: If the label is none, or there is no conversation.

    Example:
        >>> turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
        >>> from_labelled({"messages": turns, "label": 1}, 0, RowOptions())[0]["completion"]
        [{'role': 'assistant', 'content': '4'}]
    """
    label = row["label"]
    if not isinstance(label, (bool, int)) or label not in (0, 1):
        raise InputError(
            f"row {number}: 'label' tells whether the response is desirable; expected true or "
            f"false; got {label!r:.80}"
        )
    if row.get("completion") is not None:
        return {**row, "label": bool(label)}, ""
    name = "messages" if row.get("messages") is not None else "conversations"
    turns = row[name]
    if not isinstance(turns, list):
        raise InputError(f"row {number}: field {name!r} must be a list of turns; got {turns!r:.80}")
    return {**row, "prompt": turns[:-1], "completion": turns[-1:], "label": bool(label)}, ""


def _instruction(row: Row, number: int) -> list[dict[str, Any]] | None:
    """The turns before the response; None where there is no instruction."""
    texts = [text for text in (row["instruction"], row.get("input")) if text]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"row {number}: 'instruction' and 'input' must be text; got {texts!r:.80}")
    said = [each for pair in row.get("history") or [] for each in pair]
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate([*said, "\n".join(texts)])
    ]
    return turns if texts else None
