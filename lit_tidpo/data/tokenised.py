"""What a tokenised row holds: one table for the tokenizer and the cache files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from datasets import Features, List, Value

from lit_tidpo.data.shapes import NUMBERS, PAIR, SINGLE
from lit_tidpo.errors import InputError

_IDS, _WEIGHTS, _FLAG = List(Value("int32")), List(Value("float32")), Value("bool")
_FLAGS = List(_FLAG)
_KINDS = {PAIR: "a pair", SINGLE: "a single response with a label"}


def sides_of(row: Any) -> tuple[str, ...]:
    """Names of the responses of a tokenised row, or of rows with these columns."""
    return SINGLE if "label" in row else PAIR


def check_kind(row: Mapping[str, Any], sides: tuple[str, ...], number: int) -> None:
    """Refuse a tokenised row whose responses have other names than those of its split.

    Args:
        row: The row.
        sides: Names of the responses of the split.
        number: Position of the row in its split, for messages.

    Raises:
        InputError: If they have.
    """
    if sides_of(row) != sides:
        raise InputError(
            f"row {number} holds {_KINDS[sides_of(row)]}, others do not: put pairs and single "
            "responses into data sets of their own"
        )


@lru_cache
def features(sides: tuple[str, ...]) -> Features:
    """The columns of tokenised rows whose responses have these names."""
    return Features({name: kind for name, (kind, _) in _columns(sides).items()})


def blank_row(sides: tuple[str, ...], number: int, problem: str = "") -> dict[str, Any]:
    """A row without ids.

    Args:
        sides: Names of the responses.
        number: Position of the row in its split.
        problem: Why it cannot be trained on.
    """
    return {**_blank(sides), "index": number, "problem": problem}


@lru_cache
def _blank(sides: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, (_, value) in _columns(sides).items()}


def _columns(sides: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Type of each column and its value in a row without ids."""
    per_side: dict[str, tuple[Any, Any]] = {
        "ids": (_IDS, []),
        "weights": (_WEIGHTS, None),
        "context": (_FLAGS, None),
        "truncated": (_FLAG, False),
    }
    return {
        "prompt_ids": (_IDS, []),
        **{f"{side}_{name}": kind for name, kind in per_side.items() for side in sides},
        **({"label": (_FLAG, None)} if sides == SINGLE else {}),
        **{name: (Value("float32"), None) for name in NUMBERS},
        "length": (Value("int32"), 0),
        "prompt_truncated": (_FLAG, False),
        "shifted": (_FLAG, False),
        "left_out": (Value("string"), ""),
        "guarded": (Value("int32"), 0),
        "index": (Value("int64"), None),
        "problem": (Value("string"), ""),
    }
