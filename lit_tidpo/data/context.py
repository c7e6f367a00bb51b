"""What others say within a response of several turns: context that is not trained on."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from lit_tidpo.data.encoding import WordEncoder
from lit_tidpo.data.ends import Ends
from lit_tidpo.data.rendering import Renderer
from lit_tidpo.data.rows import NormalRow
from lit_tidpo.data.spans import token_places
from lit_tidpo.data.turns import Message, is_others
from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ContextFinder:
    """Finds the tokens of a response that are not the assistant's.

    A turn of the assistant begins where the template, given the turns before, opens one, and ends
    with the terminator that the template puts after it. All else is context. Of text, tokens that
    lie within the human's turns and their marks are.

    Args:
        tokenizer: The tokenizer.
        renderer: Makes texts of turns.
        encoder: Makes ids of texts.
        ends: Lets ids begin and end.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        encoder: WordEncoder,
        ends: Ends,
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._encoder = encoder
        self._ends = ends

    def __call__(
        self, row: NormalRow, side: str, ids: list[int], boundary: int, number: int
    ) -> list[bool] | None:
        """Whether each token of a response is context.

        Args:
            row: The row.
            side: Name of the response.
            ids: Ids of prompt and response.
            boundary: Number of those of the prompt.
            number: Position of the row in its split, for messages.

        Returns:
            A flag for each token after the boundary; None where the assistant alone speaks.

        Raises:
            InputError: If the template renders a turn otherwise once others follow it, or the
                tokenizer does not tell where tokens are in a text.
        """
        said = row.responses[side]
        if isinstance(said, str):
            found = self._in_text(row, side, ids, number) if row.context.get(side) else None
            return found and found[boundary:]
        if not any(map(is_others, said)):
            return None
        context = [True] * len(ids)
        place = 0
        for others, run in groupby(said, key=is_others):
            start, place = place, place + len(list(run))
            if not others:
                first = self._opened(row, said[:start], ids, number) if start else boundary
                end = self._closed(row, said[:place], ids, number)
                context[first:end] = [False] * (end - first)
        return context[boundary:]

    def _in_text(self, row: NormalRow, side: str, ids: list[int], number: int) -> list[bool]:
        """Whether each token of prompt and response lies where others speak."""
        text, start = f"{row.prompt}{row.responses[side]}", len(row.prompt)
        places = token_places(self._tokenizer, text, self._ends.bos, len(ids), number)
        spans = [(start + begin, start + end) for begin, end in row.context[side]]
        return [any(a <= begin < b and end <= b for a, b in spans) for begin, end in places]

    def _opened(self, row: NormalRow, turns: list[Message], ids: list[int], number: int) -> int:
        """Number of ids before the first one of the turn that follows these."""
        return shared_prefix(self._ids(row, turns, number, open_turn=True), ids)

    def _closed(self, row: NormalRow, turns: list[Message], ids: list[int], number: int) -> int:
        """Number of ids up to the terminator of the last of these turns."""
        part = self._ends.ended(self._ids(row, turns, number, open_turn=False), is_plain=False)
        if ids[: len(part)] != part:
            raise InputError(
                f"row {number}: the chat template renders turns of the assistant otherwise once "
                "others follow (it drops their reasoning, say), so that they have no place in a "
                "response of several turns: give a chat_template that does not, or set "
                "data.trained_turns=single"
            )
        return len(part)

    def _ids(self, row: NormalRow, turns: list[Message], number: int, open_turn: bool) -> list[int]:
        text = self._renderer.part(row, turns, number, open_turn)
        return self._ends.begun(self._encoder.encode([[text]])[0][0])


def shared_prefix(first: list[int], second: list[int]) -> int:
    """Number of leading ids that two sequences share."""
    if second[: len(first)] == first:
        return len(first)
    pairs = zip(first, second, strict=False)
    differing = (place for place, (one, other) in enumerate(pairs) if one != other)
    return next(differing, min(len(first), len(second)))
