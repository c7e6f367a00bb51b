"""Dialogues inside one text, whose turns are marked as in the HH-RLHF data."""

from __future__ import annotations

import re

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
_OTHERS = re.compile(rf"{HUMAN}.*?(?:{ASSISTANT}|\Z)", re.DOTALL)


def shared_turns(chosen: str, rejected: str) -> str:
    """What two dialogues begin with, up to the last mark of the assistant's turn that they share.

    Without such a mark the rejected text does not start with the prompt of the chosen one.
    """
    ends = [mark.end() for mark in re.finditer(ASSISTANT, chosen)]
    return next((chosen[:e] for e in reversed(ends) if rejected.startswith(chosen[:e])), "")


def others_turns(response: str) -> list[tuple[int, int]]:
    r"""Where the human speaks, as start and end in characters, the marks of both among them.

    Example:
        >>> others_turns(" No.\n\nHuman: Why?\n\nAssistant: It is 7.")
        [(4, 29)]
    """
    return [mark.span() for mark in _OTHERS.finditer(response)]
