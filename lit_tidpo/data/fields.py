"""Fields of rows, checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_tidpo.data.shapes import NUMBERS
from lit_tidpo.data.turns import Message, messages
from lit_tidpo.errors import InputError

_HALF = re.compile("[\ud800-\udfff]")


def check_characters(row: Any, where: str) -> None:
    """Refuse text with half of a character: JSON may hold it, but nothing can encode it.

    Args:
        row: A row's fields.
        where: What it is, for messages.

    Raises:
        InputError: Naming the column.
    """
    for column, value in row.items() if isinstance(row, Mapping) else ():
        if half := _HALF.search(json.dumps(value, ensure_ascii=False, default=str)):
            raise InputError(
                f"{where}: column {column!r} holds {half[0]!a}, which is half of a character (an "
                "emoji takes two such escapes): a text was cut there; mend it or leave the row out"
            )


def text_or_messages(row: Mapping[str, Any], name: str, number: int) -> str | list[Message]:
    """A field that holds text, or the turns of a conversation.

    Args:
        row: The row's fields.
        name: Name of the field.
        number: Position of the row in its split, for messages.

    Raises:
        InputError: If it holds anything else.
    """
    value = row.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        return messages(value, name, number)
    raise InputError(
        f"row {number}: field {name!r} must be text or a list of messages with 'role' and "
        f"'content'; got {value!r:.80}"
    )


def token_weights(
    row: Mapping[str, Any], sides: Sequence[str], number: int
) -> dict[str, list[float] | None]:
    """Weights of the tokens of each response, from the columns ``SIDE_weights``.

    Args:
        row: The row's fields.
        sides: Names of the responses.
        number: Position of the row in its split, for messages.

    Returns:
        The weights by side; None if the row has no side's.

    Raises:
        InputError: If they are no numbers of 0 or more.
    """
    if not any(f"{side}_weights" in row for side in sides):
        return dict.fromkeys(sides)
    return {side: _weights(row, f"{side}_weights", number) for side in sides}


def _weights(row: Mapping[str, Any], name: str, number: int) -> list[float]:
    values = row.get(name)
    if isinstance(values, list) and all(
        isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in values
    ):
        return [float(value) for value in values]
    raise InputError(
        f"row {number}: field {name!r} must be a list of numbers >= 0, one per token of the "
        f"response, in every row or in none; got {values!r:.80}"
    )


def row_numbers(row: Mapping[str, Any], number: int) -> dict[str, float | None]:
    """The numbers of a row: its responses' scores, and how much the pair counts.

    Args:
        row: The row's fields.
        number: Position of the row in its split, for messages.

    Returns:
        By column; None where there is none.

    Raises:
        InputError: If one is no finite number, or the pair's weight is negative.
    """
    found: dict[str, float | None] = {}
    for name in NUMBERS:
        value = row.get(name)
        sound = isinstance(value, (int, float)) and math.isfinite(value)
        if value is not None and (not sound or (name == "pair_weight" and value < 0)):
            expected = "a number of 0 or more" if name == "pair_weight" else "a finite number"
            raise InputError(
                f"row {number}: column {name!r} holds {value!r:.80}; expected {expected}"
            )
        found[name] = None if value is None else float(value)
    return found
