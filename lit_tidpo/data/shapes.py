"""The shapes that rows of preference data come in: one table for reader, documents and help."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.readers import (
    Row,
    as_it_is,
    from_alpaca,
    from_labelled,
    from_labelled_alpaca,
    from_ranked,
    from_sharegpt,
)
from lit_tidpo.data.turns import spoken

NUMBERS = ("score_chosen", "score_rejected", "pair_weight")
"""Columns with a number for each row, of any shape."""

PAIR, SINGLE = ("chosen", "rejected"), ("completion",)
"""Names of the responses of a row: of a pair, and of a single one that has a label."""


@dataclass(frozen=True)
class Shape:
    """A shape of rows.

    Attributes:
        name: What it is called.
        columns: Alternatives of columns by which it is known.
        examples: Rows, by what they show.
        read: Brings a row, with its number and the options, to ``prompt`` and the columns of its
            responses; tells what keeps it from being trained on, or nothing.
        more: Further columns that are read.
        sides: The columns of its responses.
    """

    name: str
    columns: tuple[frozenset[str], ...]
    examples: Mapping[str, Row]
    read: Callable[[Row, int, RowOptions], tuple[Row, str]]
    more: frozenset[str] = frozenset()
    sides: tuple[str, ...] = PAIR


@lru_cache
def shape_of(columns: frozenset[str]) -> Shape | None:
    """The shape of rows with these columns; None if it is none that is known.

    Example:
        >>> shape_of(frozenset({"conversations", "chosen", "rejected"})).name
        'sharegpt'
    """
    if columns >= {"prompt", "chosen", "rejected"}:
        return _PAIRS
    fitting = (
        shape
        for shape in SHAPES
        if any(known <= columns for known in shape.columns)
        # A pair may have a label beside it.
        and (shape.sides == PAIR or not columns >= set(PAIR))
    )
    return next(fitting, None)


def sides_of_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Names of the responses of rows with these columns."""
    shape = shape_of(frozenset(columns))
    return PAIR if shape is None else shape.sides


def row_shape(row: Row) -> Shape:
    """The shape of a row, by the columns that hold something where that tells."""
    given = frozenset(name for name, value in row.items() if value is not None)
    return shape_of(given) or shape_of(frozenset(row)) or _PAIRS


def describe_shapes() -> str:
    """The table of shapes with an example of each, in Markdown."""
    parts = []
    for shape in SHAPES:
        known = " or ".join(", ".join(f"`{n}`" for n in sorted(names)) for names in shape.columns)
        more = ", ".join(f"`{name}`" for name in sorted(shape.more))
        parts.append(f"**{shape.name}**: rows with {known}" + (f"; also {more}" if more else ""))
        for what, row in shape.examples.items():
            parts.append(f"{what}:\n\n```json\n{json.dumps(row, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


_Q, _GOOD, _BAD = "Is 7 prime?", "Yes: only 1 and 7 divide it.", "No."
_ASKED = [{"role": "user", "content": _Q}]
_ANSWERS = {"chosen": spoken(_GOOD), "rejected": spoken(_BAD)}
_TOOL = {"type": "function", "function": {"name": "factor", "parameters": {"n": "integer"}}}
_CALL = {"type": "function", "function": {"name": "factor", "arguments": {"n": 7}}}

_PAIRS = Shape(
    "pairs",
    (frozenset({"chosen", "rejected"}),),
    {
        "text that continues the prompt as it is": {
            "prompt": f"{_Q} ", "chosen": _GOOD, "rejected": _BAD,
        },
        "text without a prompt, whose shared first words are the prompt": {
            "chosen": "Seven is prime.", "rejected": "Seven is even.",
        },
        "dialogues as in HH-RLHF": {
            "chosen": f"\n\nHuman: {_Q}\n\nAssistant: {_GOOD}",
            "rejected": f"\n\nHuman: {_Q}\n\nAssistant: {_BAD}",
        },
        "chat messages": {"prompt": _ASKED, **_ANSWERS},
        "whole conversations, whose shared turns are the prompt (UltraFeedback as binarised)": {
            "prompt": _Q,
            "chosen": [*_ASKED, *_ANSWERS["chosen"]],
            "rejected": [*_ASKED, *_ANSWERS["rejected"]],
        },
        "a system prompt, tools, and a response that calls one": {
            "system": "Be brief.",
            "tools": [_TOOL],
            "prompt": _ASKED,
            "chosen": [{"role": "assistant", "content": None, "tool_calls": [_CALL]}],
            "rejected": _ANSWERS["rejected"],
        },
        "content in parts of text": {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": _Q}]}],
            **_ANSWERS,
        },
        "weights of the response's tokens, its terminator among them": {
            "prompt": "2+2=", "chosen": "4", "rejected": "5",
            "chosen_weights": [1.0, 0.5], "rejected_weights": [1.0, 0.5],
        },
        "characters of the responses that count, scores, and how much the pair counts": {
            "prompt": "2+2=", "chosen": "four (4)", "rejected": "five (5)",
            "chosen_spans": [[0, 4]], "rejected_spans": [[0, 4]],
            "score_chosen": 1.0, "score_rejected": -1.0, "pair_weight": 0.5,
        },
    },
    as_it_is,
    frozenset(
        {
            *("prompt", "system", "tools"),
            *("chosen_weights", "rejected_weights", "chosen_spans", "rejected_spans"),
        }
    ),
)  # fmt: skip

_BESIDE_SINGLE = ("completion_weights", "completion_spans", "system", "tools")

SHAPES = (
    Shape(
        "labelled alpaca",
        (frozenset({"instruction", "output", "label"}),),
        {
            "an output that is desirable or not (LLaMA-Factory's `kto_tag` by `data.columns`)": {
                "instruction": _Q, "output": _GOOD, "label": True,
            }
        },
        from_labelled_alpaca,
        frozenset({"input", "history", *_BESIDE_SINGLE}),
        SINGLE,
    ),
    Shape(
        "labelled",
        tuple(
            frozenset({name, "label"}) for name in ("completion", "messages", "conversations")
        ),
        {
            "a response that is desirable or not, as text or messages (TRL's unpaired rows)": {
                "prompt": f"{_Q} ", "completion": _BAD, "label": False,
            },
            "a conversation whose last turn is the response": {
                "messages": [*_ASKED, *_ANSWERS["chosen"]], "label": True,
            },
        },
        from_labelled,
        frozenset({"prompt", *_BESIDE_SINGLE}),
        SINGLE,
    ),
    Shape(
        "sharegpt",
        (frozenset({"conversations", "chosen", "rejected"}),),
        {
            "turns with `from` and `value`; a response is a turn, or several": {
                "conversations": [{"from": "human", "value": _Q}],
                "chosen": {"from": "gpt", "value": _GOOD},
                "rejected": {"from": "gpt", "value": _BAD},
            }
        },
        from_sharegpt,
        frozenset({"system", "tools"}),
    ),
    Shape(
        "alpaca",
        (frozenset({"instruction", "chosen", "rejected"}), frozenset({"instruction", "output"})),
        {
            "an instruction, which becomes the user's turn": {
                "instruction": "Say whether the number is prime.",
                "input": "7",
                "chosen": _GOOD,
                "rejected": _BAD,
            },
            "the better one of two outputs first": {"instruction": _Q, "output": [_GOOD, _BAD]},
        },
        from_alpaca,
        frozenset({"input", "history", "system", "tools"}),
    ),
    Shape(
        "ranked",
        (frozenset({"instruction", "completions"}), frozenset({"prompt", "completions"})),
        {
            "UltraFeedback as first published; the best against a lower one, by `data.against`": {
                "instruction": _Q,
                "completions": [
                    {"response": _BAD, "overall_score": 2.0, "fine-grained_score": 1.75},
                    {"response": _GOOD, "overall_score": 8.5, "fine-grained_score": 4.75},
                    {"response": "Perhaps.", "overall_score": 4.0, "fine-grained_score": 3.0},
                ],
            },
            "texts with a list of scores": {
                "prompt": _Q, "completions": [_BAD, _GOOD], "scores": [0.1, 0.9],
            },
        },
        from_ranked,
        frozenset({"scores", "system", "tools"}),
    ),
    _PAIRS,
)  # fmt: skip
"""All shapes; the first that fits counts."""

COLUMNS = frozenset(NUMBERS).union(*(each.more.union(*each.columns) for each in SHAPES))
"""The columns that are read."""
