"""One normal form for the shapes that preference data come in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lit_tidpo.data.dialogues import ASSISTANT, others_turns, shared_turns
from lit_tidpo.data.fields import text_or_messages, token_weights
from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.shapes import row_shape
from lit_tidpo.data.turns import Message, from_json, is_others, payload, without_nulls
from lit_tidpo.errors import InputError

_SEVERAL = "more than one turn in a response, which data.trained_turns=all trains on"
Text = str | list[Message]
Weights = Mapping[str, "list[float] | None"]


@dataclass(frozen=True)
class NormalRow:
    """A prompt with its responses, as text or as chat messages.

    Attributes:
        prompt: Text, or the turns that come before the responses.
        responses: Text or turns of each, by name: ``chosen`` and ``rejected`` of a pair,
            ``completion`` of a single one.
        weights: One weight per token of each response, or None.
        problem: Why the row cannot be trained on; empty if it can.
        label: Whether a single response is desirable; None of pairs.
        tools: Definitions of tools for the chat template, or None.
        context: Where others speak in responses of text, in characters.
    """

    prompt: Text
    responses: Mapping[str, Text]
    weights: Weights
    problem: str = ""
    label: bool | None = None
    tools: list[Any] | None = None
    context: Mapping[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether it holds no messages."""
        return isinstance(self.prompt, str)


_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def normal_row(row: Mapping[str, Any], number: int, options: RowOptions | None = None) -> NormalRow:
    r"""Bring one row of a data set into normal form.

    A row of any of the :data:`~lit_tidpo.data.shapes.SHAPES` is one that has ``chosen`` and
    ``rejected``, both text or both chat messages, and mostly ``prompt``:

    * with a prompt, text responses continue it as they are, without a separator; a prompt that is
      empty, or that all responses repeat, is a problem;
    * messages that start before the assistant's turn are whole conversations: the prompt is the
      turns that they share, whatever the ``prompt`` field says (UltraFeedback repeats it there);
    * without a prompt, texts that hold ``\n\nAssistant:`` are dialogues like those of HH-RLHF: the
      prompt ends after the last such mark that they share. Other texts share their leading whole
      words, as far as each keeps at least one word of its own.

    Or it is one that has ``prompt``, ``completion`` and ``label``.

    Beside messages, ``system`` is the first turn and ``tools`` (a list, or JSON) goes to the chat
    template. A message's ``content`` is text, a list of text parts, or nothing where the message
    holds something else, such as ``tool_calls``.

    Args:
        row: The row's fields.
        number: Position of the row in its split, for messages.
        options: How to read it where there is a choice; None takes the defaults.

    Returns:
        The row. One that cannot be trained on has a ``problem``.

    Raises:
        InputError: If a field is missing or of another type, or the row holds images, audio or
            video.

    Example:
        >>> row = normal_row({"chosen": "It is blue.", "rejected": "It is brown."}, 0)
        >>> row.prompt, *row.responses.values()
        ('It is', ' blue.', ' brown.')
    """
    media = [name for name in _MEDIA if row.get(name)]
    if media:
        raise InputError(
            f"row {number}: column {media[0]!r} holds {row[media[0]]!r:.80}, but only text is "
            "trained on: leave such rows out, or drop the column if the text stands alone"
        )
    shape = row_shape(row)
    options = options or RowOptions()
    row, problem = shape.read(row, number, options)
    found = _normal_form(row, number, shape.sides)
    if not problem and not found.problem:
        problem = _turns_problem(found, options)
    return replace(found, problem=problem) if problem else found


def _normal_form(row: Mapping[str, Any], number: int, sides: tuple[str, ...]) -> NormalRow:
    given = {side: text_or_messages(row, side, number) for side in sides}
    prompt = None if row.get("prompt") is None else text_or_messages(row, "prompt", number)
    weights = token_weights(row, sides, number)
    texts = {side: said for side, said in given.items() if isinstance(said, str)}
    if len(texts) == len(given):
        return _from_text(row, prompt, texts, weights, number)
    turns = {side: said for side, said in given.items() if isinstance(said, list)}
    if len(turns) == len(given):
        problem = "empty prompt" if prompt is None and "prompt" in row else ""
        return _with_columns(_from_messages(row, prompt, turns, weights, problem), row, number)
    raise InputError(
        f"row {number}: one of 'chosen' and 'rejected' is text, the other messages; "
        "expected both of one kind"
    )


def _with_columns(found: NormalRow, row: Mapping[str, Any], number: int) -> NormalRow:
    """Put the columns ``system`` and ``tools`` into a row of messages."""
    system, tools, prompt = row.get("system"), row.get("tools"), found.prompt
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
    return replace(found, prompt=prompt, tools=without_nulls(tools) or None)


def _from_text(
    row: Mapping[str, Any],
    prompt: Text | None,
    texts: Mapping[str, str],
    weights: Weights,
    number: int,
) -> NormalRow:
    unused = [name for name in ("system", "tools") if row.get(name)]
    if unused:
        raise InputError(
            f"row {number}: column {unused[0]!r} is for messages, but the responses are text: "
            "put it into the prompt, or drop the column"
        )
    if isinstance(prompt, list):
        raise InputError(
            f"row {number}: 'prompt' holds messages, but the responses are text; "
            "expected messages or text in all fields"
        )
    if prompt is not None or "prompt" in row or len(texts) == 1:
        problem = ""
        if not (prompt or "").strip():
            problem = "empty prompt"
        elif all(text.startswith(prompt or "") for text in texts.values()):
            where = "both responses" if len(texts) > 1 else "the response"
            problem = f"prompt repeated in {where}"
        return _checked(row, prompt or "", texts, weights, problem)
    prompt, problem = _shared_text(*texts.values())
    responses = {side: text[len(prompt) :] for side, text in texts.items()}
    if not problem and any(text.rstrip().endswith(ASSISTANT) for text in responses.values()):
        problem = "empty response"
    context = {side: others_turns(text) for side, text in responses.items()}
    return replace(_checked(row, prompt, responses, weights, problem), context=context)


def _shared_text(chosen: str, rejected: str) -> tuple[str, str]:
    """The prompt that two texts begin with, and why there is none."""
    if ASSISTANT in chosen or ASSISTANT in rejected:
        prompt = shared_turns(chosen, rejected)
        return prompt, "" if prompt else "different prompts"
    words = [re.findall(r"\s*\S+", text) for text in (chosen, rejected)]
    most = max(min(map(len, words)) - 1, 0)  # each response keeps a word
    same = itertools.takewhile(_same, zip(*words, strict=False))
    return "".join(word for word, _ in itertools.islice(same, most)), ""


def _from_messages(
    row: Mapping[str, Any],
    prompt: Text | None,
    given: Mapping[str, list[Message]],
    weights: Weights,
    problem: str,
) -> NormalRow:
    whole = any(turns and turns[0]["role"] != "assistant" for turns in given.values())
    if len(given) > 1 and (whole or prompt is None):
        most = max(min(map(len, given.values())) - 1, 0)  # each response keeps a turn
        sides = zip(*(turns[:most] for turns in given.values()), strict=True)
        shared = sum(1 for _ in itertools.takewhile(_same, sides))
        prompt = next(iter(given.values()))[:shared]
        given = {side: turns[shared:] for side, turns in given.items()}
        problem = problem if not whole else "" if shared else "different prompts"
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return _checked(row, prompt or [], given, weights, problem)


def _checked(
    row: Mapping[str, Any],
    prompt: Text,
    responses: Mapping[str, Text],
    weights: Weights,
    problem: str,
) -> NormalRow:
    values = list(responses.values())
    if not problem and any(map(_is_blank, values)):
        problem = "empty response"
    elif not problem and len(values) > 1 and values[0] == values[1]:
        problem = "identical responses"
    label = row["label"] if len(values) == 1 else None
    return NormalRow(prompt, responses, weights, problem, label)


def _turns_problem(row: NormalRow, options: RowOptions) -> str:
    """Why responses have turns that are not trained on; empty if they have none."""
    turns = [_by_others(said, row.context.get(side, [])) for side, said in row.responses.items()]
    if any(each[-1] for each in turns):
        return "a response ends in a turn that is not the assistant's"
    return _SEVERAL if options.trained_turns == "single" and any(map(any, turns)) else ""


def _by_others(said: Text, context: list[tuple[int, int]]) -> list[bool]:
    """Whether each turn of a response is another's than the assistant's."""
    if isinstance(said, list):
        return list(map(is_others, said))
    return [True for _ in context] + [False] * (not context or context[-1][1] < len(said))


def _same(pair: tuple[Any, Any]) -> bool:
    return bool(pair[0] == pair[1])


def _is_blank(response: Text) -> bool:
    if isinstance(response, str):
        return not response.strip()
    return not any(turn["content"].strip() or payload(turn) for turn in response)
