"""Spans of characters that are marked in responses, as weights of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_tidpo.errors import InputError, explained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


def spans_of(row: Mapping[str, Any], response: Any, side: str, number: int) -> list[Span]:
    """Marked spans of a response, as start and end in the characters of its text.

    Args:
        row: The row's fields.
        response: The response, as text or messages.
        side: Its name, such as ``chosen``.
        number: Position of the row in its split, for messages.

    Returns:
        The spans of the column ``SIDE_spans``.

    Raises:
        InputError: If the spans are none of the response, or it has weights, too.
    """
    name = f"{side}_spans"
    if row.get(f"{side}_weights") is not None:
        raise InputError(
            f"row {number}: both '{side}_weights' and {name!r} weigh the tokens: drop one"
        )
    text, spans = _text(response), row.get(name)
    if isinstance(spans, list) and all(
        isinstance(span, list)
        and [type(place) for place in span] == [int, int]
        and 0 <= span[0] < span[1] <= len(text)
        for span in spans
    ):
        return [(start, end) for start, end in spans]
    raise InputError(
        f"row {number}: field {name!r} must be a list of [start, end], in characters of the "
        f"response's text from 0 to {len(text)}, in every row or in none; got {spans!r:.80}"
    )


def token_places(
    tokenizer: PreTrainedTokenizerBase, text: str, bos: list[int], count: int, number: int
) -> list[Span]:
    """Where each token of a rendered text is in its characters.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        bos: What its ids begin with.
        count: Number of its ids, what is put or cut at the end included.
        number: Position of the row in its split, for messages.

    Returns:
        Start and end of each.

    Raises:
        InputError: If the tokenizer does not tell.
    """
    needed = "marked spans, and turns within a text, need a tokenizer that tells where tokens are"
    with explained(f"row {number}: {needed}"):
        found = tokenizer(
            text, add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )
    begins = [] if found["input_ids"][:1] == bos else [(0, 0) for _ in bos]
    places = [*begins, *found["offset_mapping"]]
    return [*places, *[(len(text), len(text))] * (count - len(places))][:count]


def span_weights(
    places: Sequence[Span], field: Any, rendered: str, spans: Sequence[Span], number: int
) -> list[float]:
    """1 for tokens that overlap a span, 0 for others.

    Args:
        places: Start and end of each token in the characters of the rendered text.
        field: The response, as text (that may begin with its prompt) or messages.
        rendered: Text of prompt and response.
        spans: See :func:`spans_of`.
        number: Position of the row in its split, for messages.

    Returns:
        A weight for each place.

    Raises:
        InputError: If the rendered text does not hold that of the response.
    """
    text = _text(field)
    start = len(rendered) - len(text) if isinstance(field, str) else rendered.rfind(text)
    if start < 0:
        raise InputError(
            f"row {number}: the chat template changes the response's text, so that its marked "
            "spans have no place: give weights of its tokens in their place"
        )
    return [
        float(any(a < start + end and b > start + begin for begin, end in spans)) for a, b in places
    ]


def _text(field: Any) -> str:
    """Text of a response: of messages that of the last one, which ends the rendered text."""
    return str(field if isinstance(field, str) else field[-1]["content"])
