"""Turns of a conversation, whatever a data set calls their parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lit_tidpo.errors import InputError

Message = dict[str, Any]

_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
"""Roles by what ShareGPT calls them; other names are roles."""


def messages(value: Any, name: str, number: int) -> list[Message]:
    """Turns of one field, each with ``role`` and ``content``.

    Args:
        value: A list of turns, or one turn, as ``role`` and ``content`` or as ShareGPT's ``from``
            and ``value``.
        name: Name of the field, for messages.
        number: Position of the row in its split, for messages.

    Raises:
        InputError: If a turn is of another shape, or holds other things than text.
    """
    turns = [value] if isinstance(value, Mapping) else value
    return [
        _message(turn, f"row {number}: field {name!r}, turn {place}")
        for place, turn in enumerate(turns)
    ]


def spoken(response: Any) -> Any:
    """A response as the assistant's turn, if it is text."""
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else response


def is_others(turn: Message) -> bool:
    """Whether someone else than the assistant says it."""
    return bool(turn["role"] != "assistant")


def payload(turn: Message) -> dict[str, Any]:
    """What a message holds beside its text, such as ``tool_calls``."""
    return {k: v for k, v in turn.items() if k not in ("role", "content", "name") and v}


def without_nulls(value: Any) -> Any:
    """Nested data without the keys that are None, which a columnar file gives to all."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def from_json(value: Any, what: str) -> Any:
    """What JSON text holds; anything else as it is.

    Raises:
        InputError: If text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is no JSON: {error}") from error


def _message(turn: Any, where: str) -> Message:
    """A turn whose content is text."""
    if isinstance(turn, dict) and isinstance(turn.get("from"), str) and "role" not in turn:
        turn = _from_sharegpt(turn, where)
    if isinstance(turn, dict) and isinstance(turn.get("role"), str):
        kept: Message = without_nulls(turn)
        content = kept.get("content")
        if isinstance(content, list):
            content = _joined(content, where)
        if content is None and payload(kept):
            content = ""
        if isinstance(content, str):
            return {**kept, "content": content}
    raise InputError(
        f"{where}: expected a message with 'role' and 'content' (text, text parts, or nothing "
        f"beside 'tool_calls'); got {turn!r:.120}"
    )


def _from_sharegpt(turn: Message, where: str) -> Message:
    speaker, value = turn["from"], turn.get("value")
    role = _SPEAKERS.get(speaker, speaker)
    if speaker != "function_call":
        return {"role": role, "content": value}
    calls = from_json(value, f"{where}: the value of a 'function_call'")
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": role, "tool_calls": [{"type": "function", "function": c} for c in calls]}


def _joined(parts: list[Any], where: str) -> str:
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(parts):
        raise InputError(f"{where}: only parts of text are trained on; got {parts!r:.120}")
    return "".join(texts)
