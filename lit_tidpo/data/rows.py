"""One normal form for the shapes that preference data come in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lit_tidpo.data.fields import text_or_messages, token_weights
from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.shapes import as_pair
from lit_tidpo.data.turns import Message, from_json, payload, without_nulls
from lit_tidpo.errors import InputError

# How the HH-RLHF data mark the turns of a dialogue inside one string.
_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a preferred and a dispreferred response, as text or as chat messages.

    Attributes:
        prompt: Text, or the turns that come before the responses.
        chosen: Text, or the turns of the preferred response.
        rejected: Text, or the turns of the dispreferred response.
        chosen_weights: One weight per token of the chosen response, or None.
        rejected_weights: One weight per token of the rejected response, or None.
        problem: Why the pair cannot be trained on; empty if it can.
        tools: Definitions of tools for the chat template, or None.
    """

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]
    chosen_weights: list[float] | None = None
    rejected_weights: list[float] | None = None
    problem: str = ""
    tools: list[Any] | None = None


_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def preference_pair(
    row: Mapping[str, Any], number: int, options: RowOptions | None = None
) -> PreferencePair:
    r"""Bring one row of a data set into normal form.

    A row of any of the :data:`~lit_tidpo.data.shapes.SHAPES` is one that has ``chosen`` and
    ``rejected``, both text or both chat messages, and mostly ``prompt``:

    * with a prompt, text responses continue it as they are, without a separator; a prompt that is
      empty, or that both responses repeat, is a problem;
    * messages that start before the assistant's turn are whole conversations: the prompt is the
      turns that they share, whatever the ``prompt`` field says (UltraFeedback repeats it there);
    * without a prompt, texts that hold ``\n\nAssistant:`` are dialogues like those of HH-RLHF: the
      prompt ends after the last such mark that they share. Other texts share their leading whole
      words, as far as each keeps at least one word of its own.

    Beside messages, ``system`` is the first turn and ``tools`` (a list, or JSON) goes to the chat
    template. A message's ``content`` is text, a list of text parts, or nothing where the message
    holds something else, such as ``tool_calls``.

    Args:
        row: The row's fields.
        number: Position of the row in its split, for messages.
        options: How to read it where there is a choice; None takes the defaults.

    Returns:
        The pair. A pair that cannot be trained on has a ``problem``.

    Raises:
        InputError: If a field is missing or of another type, or the row holds images, audio or
            video.

    Example:
        >>> pair = preference_pair({"chosen": "It is blue.", "rejected": "It is brown."}, 0)
        >>> pair.prompt, pair.chosen, pair.rejected
        ('It is', ' blue.', ' brown.')
    """
    media = [name for name in _MEDIA if row.get(name)]
    if media:
        raise InputError(
            f"row {number}: column {media[0]!r} holds {row[media[0]]!r:.80}, but only text is "
            "trained on: leave such rows out, or drop the column if the text stands alone"
        )
    row, problem = as_pair(row, number, options or RowOptions())
    pair = _normal_form(row, number)
    return replace(pair, problem=problem) if problem else pair


def _normal_form(row: Mapping[str, Any], number: int) -> PreferencePair:
    chosen, rejected = (text_or_messages(row, name, number) for name in ("chosen", "rejected"))
    prompt = None if row.get("prompt") is None else text_or_messages(row, "prompt", number)
    weights = (token_weights(row, "chosen", number), token_weights(row, "rejected", number))
    if isinstance(chosen, str) and isinstance(rejected, str):
        unused = [name for name in ("system", "tools") if row.get(name)]
        if unused:
            raise InputError(
                f"row {number}: column {unused[0]!r} is for messages, but the responses are text: "
                "put it into the prompt, or drop the column"
            )
        if isinstance(prompt, list):
            raise InputError(
                f"row {number}: 'prompt' holds messages, but the responses are text; "
                "expected messages or text in all three fields"
            )
        if prompt is None and "prompt" not in row:
            return _from_implicit_text(chosen, rejected, weights)
        return _from_explicit_text(prompt or "", chosen, rejected, weights)
    if isinstance(chosen, list) and isinstance(rejected, list):
        problem = "empty prompt" if prompt is None and "prompt" in row else ""
        pair = _from_messages(prompt, chosen, rejected, weights, problem)
        return _with_columns(pair, row, number)
    raise InputError(
        f"row {number}: one of 'chosen' and 'rejected' is text, the other messages; "
        "expected both of one kind"
    )


_Weights = tuple["list[float] | None", "list[float] | None"]


def _with_columns(pair: PreferencePair, row: Mapping[str, Any], number: int) -> PreferencePair:
    """Put the columns ``system`` and ``tools`` into a pair of messages."""
    system, tools, prompt = row.get("system"), row.get("tools"), pair.prompt
    if system:
        if not isinstance(system, str):
            raise InputError(f"row {number}: column 'system' must be text; got {system!r:.80}")
        if prompt and isinstance(prompt[0], dict) and prompt[0]["role"] == "system":
            raise InputError(
                f"row {number}: both column 'system' and the first message give a system prompt: "
                "drop one"
            )
        prompt = [{"role": "system", "content": system}, *prompt]
    tools = from_json(tools, f"row {number}: column 'tools'") if tools else None
    if tools and not isinstance(tools, list):
        raise InputError(f"row {number}: column 'tools' must be a list; got {tools!r:.80}")
    return replace(pair, prompt=prompt, tools=without_nulls(tools) or None)


def _from_explicit_text(
    prompt: str, chosen: str, rejected: str, weights: _Weights
) -> PreferencePair:
    problem = ""
    if not prompt.strip():
        problem = "empty prompt"
    elif chosen.startswith(prompt) and rejected.startswith(prompt):
        problem = "prompt repeated in both responses"
    return _checked(prompt, chosen, rejected, weights, problem)


def _from_implicit_text(chosen: str, rejected: str, weights: _Weights) -> PreferencePair:
    if _ASSISTANT in chosen or _ASSISTANT in rejected:
        ends = [mark.end() for mark in re.finditer(_ASSISTANT, chosen)]
        # Without a shared mark the rejected text does not start with the prompt of the chosen one.
        prompt = next((chosen[:e] for e in reversed(ends) if rejected.startswith(chosen[:e])), "")
        responses = (chosen[len(prompt) :], rejected[len(prompt) :])
        problem = "" if prompt else "different prompts"
        if prompt and any(_HUMAN in response for response in responses):
            problem = "more than one turn in a response"
        return _checked(prompt, *responses, weights, problem)
    words = [re.findall(r"\s*\S+", text) for text in (chosen, rejected)]
    most = max(min(map(len, words)) - 1, 0)  # each response keeps a word
    same = itertools.takewhile(_same, zip(*words, strict=False))
    prompt = "".join(word for word, _ in itertools.islice(same, most))
    return _checked(prompt, chosen[len(prompt) :], rejected[len(prompt) :], weights)


def _from_messages(
    prompt: str | list[Message] | None,
    chosen: list[Message],
    rejected: list[Message],
    weights: _Weights,
    problem: str,
) -> PreferencePair:
    whole = any(side and side[0]["role"] != "assistant" for side in (chosen, rejected))
    if whole or prompt is None:
        most = max(min(len(chosen), len(rejected)) - 1, 0)  # each response keeps a turn
        turns = zip(chosen[:most], rejected[:most], strict=True)
        shared = sum(1 for _ in itertools.takewhile(_same, turns))
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        problem = problem if not whole else "" if shared else "different prompts"
    else:
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not problem and any(turn["role"] != "assistant" for turn in (*chosen, *rejected)):
        problem = "more than one turn in a response"
    return _checked(prompt, chosen, rejected, weights, problem)


def _checked(
    prompt: str | list[Message],
    chosen: str | list[Message],
    rejected: str | list[Message],
    weights: _Weights,
    problem: str = "",
) -> PreferencePair:
    if not problem and (_is_blank(chosen) or _is_blank(rejected)):
        problem = "empty response"
    elif not problem and chosen == rejected:
        problem = "identical responses"
    return PreferencePair(prompt, chosen, rejected, *weights, problem)


def _same(pair: tuple[Any, Any]) -> bool:
    return bool(pair[0] == pair[1])


def _is_blank(response: str | list[Message]) -> bool:
    if isinstance(response, str):
        return not response.strip()
    return not any(turn["content"].strip() or payload(turn) for turn in response)
