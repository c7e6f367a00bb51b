"""Ranked completions of a prompt: the best one and a lower one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_tidpo.errors import InputError, check_choice

Against = Literal["random", "worst", "next"]
TrainedTurns = Literal["single", "all"]

_TEXTS = ("response", "text", "content")
_SCORES = ("overall_score", "fine-grained_score", "score")


@dataclass(frozen=True)
class RowOptions:
    """How rows are read where there is a choice.

    Attributes:
        against: Which of the ranked completions the best one stands against: one of the lower ones
            at ``random`` (the same in every run), the ``worst``, or the ``next`` best.
        score: Field of ranked completions that ranks them; None takes the first that there is of
            ``overall_score``, ``fine-grained_score`` and ``score``.
        trained_turns: Turns of a response: the ``single`` one of the assistant, so that
            conversations that part earlier are none to train on, or ``all`` of the assistant's
            after the parting, with what others say in between as context.
    """

    against: Against = "random"
    score: str | None = None
    trained_turns: TrainedTurns = "single"

    def __post_init__(self) -> None:
        check_choice("against", self.against, Against)
        check_choice("trained_turns", self.trained_turns, TrainedTurns)


def best_and_lower(
    row: Mapping[str, Any], number: int, options: RowOptions
) -> tuple[str, str, str]:
    """Pick two of the ``completions`` of a row.

    Args:
        row: ``completions``, each a text, or a text and its score by name; ``scores`` of texts.
        number: Position of the row in its split; what is picked at random depends on it alone.
        options: How to pick.

    Returns:
        The best completion, a lower one, and why there is none.

    Raises:
        InputError: If a completion has no text or no score.

    Example:
        >>> row = {"completions": ["No.", "Yes."], "scores": [1, 2]}
        >>> best_and_lower(row, 0, RowOptions())
        ('Yes.', 'No.', '')
    """
    ranked = sorted(_scored(row, number, options), key=lambda each: -each[0])  # keeps ties in order
    lower = [each for each in ranked if each[0] < ranked[0][0]]
    problem = "" if lower else "no completion with a lower score"
    places = {"random": random.Random(number).randrange(len(lower) or 1), "worst": -1, "next": 0}
    rejected = lower[places[options.against]][1] if lower else ""
    chosen = ranked[0][1] if ranked else ""
    return chosen, rejected, problem


def _scored(row: Mapping[str, Any], number: int, options: RowOptions) -> list[tuple[float, Any]]:
    """Scores and texts of ranked completions."""
    completions = row["completions"]
    if not isinstance(completions, list):
        raise InputError(f"row {number}: 'completions' must be a list; got {completions!r:.80}")
    scores = row.get("scores") or [None] * len(completions)
    if len(scores) != len(completions):
        raise InputError(
            f"row {number}: {len(completions)} 'completions' with {len(scores)} 'scores': "
            "expected one for each"
        )
    found = []
    for place, (each, score) in enumerate(zip(completions, scores, strict=True)):
        fields = each if isinstance(each, dict) else {"text": each}
        names = [options.score] if options.score else _SCORES
        score = next((fields[n] for n in names if fields.get(n) is not None), score)
        text = next((fields[name] for name in _TEXTS if fields.get(name) is not None), None)
        if not isinstance(text, str) or isinstance(score, bool) or not _is_number(score):
            raise InputError(
                f"row {number}: completion {place} must have a text (one of {_TEXTS}) and a number "
                f"that ranks it (one of {tuple(names)}, or data.score); got {each!r:.120}"
            )
        found.append((float(score), text))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value  # no NaN
