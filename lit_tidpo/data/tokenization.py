"""Preference pairs to token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_tidpo.data.encoding import WordEncoder, settings_digest
from lit_tidpo.data.ends import Ends
from lit_tidpo.data.fields import row_numbers
from lit_tidpo.data.guarding import Guard
from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.rendering import Renderer, SpecialTokens, left_out
from lit_tidpo.data.rows import PreferencePair, preference_pair
from lit_tidpo.data.shapes import NUMBERS
from lit_tidpo.data.spans import span_weights, spans_of, token_places
from lit_tidpo.errors import InputError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_NO_PLACE = (
    "special tokens in the text of messages leave marked spans without a place: set "
    "data.special_tokens=control, or give weights in their place"
)


@dataclass(frozen=True)
class TokenizationOptions:
    """How a pair becomes token ids.

    Attributes:
        max_length: Most tokens of prompt and response together.
        max_prompt_length: Tokens that a prompt may keep however long the responses are; None means
            half of ``max_length``.
        chat_template: Jinja text or path of a template that replaces the tokenizer's own.
        special_tokens: What a special token within the text of a message is: ``text``, or a
            ``control`` token. In rows of plain text they always are control tokens.
        rows: How rows are read where there is a choice.
    """

    max_length: int = 1024
    max_prompt_length: int | None = None
    chat_template: str | None = None
    special_tokens: SpecialTokens = "text"
    rows: RowOptions = field(default_factory=RowOptions)

    def __post_init__(self) -> None:
        check_choice("special_tokens", self.special_tokens, SpecialTokens)
        if self.max_length < 2:
            raise InputError(f"max_length must be at least 2 tokens; got {self.max_length}")
        if not 1 <= self.prompt_limit < self.max_length:
            raise InputError(
                f"max_prompt_length must be at least 1 and less than max_length={self.max_length}; "
                f"got {self.prompt_limit}"
            )

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt may keep however long the responses are."""
        return self.max_length // 2 if self.max_prompt_length is None else self.max_prompt_length


class PairTokenizer:
    """Turn a row of a data set into the ids of a prompt and its two responses.

    The ids of ``prompt + response`` are those of the joined text, so no token is split at the
    boundary. Where the prompt's own ids do not begin the joined ones, both responses start where
    the ids stop being shared, so that a pair has one prompt.

    Args:
        tokenizer: The tokenizer, with its chat template if the rows hold messages.
        options: Lengths.

    Raises:
        InputError: If the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: TokenizationOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self._guard = Guard(tokenizer)
        self._encoder = WordEncoder(tokenizer, self._guard)
        self._renderer = Renderer(tokenizer, self._guard, options.special_tokens)
        self._ends = Ends(tokenizer)

    @cached_property
    def digest(self) -> str:
        """Name of what the ids depend on beside the rows: the same in every process."""
        told = {"max_prompt_length": self.options.prompt_limit, "chat_template": None}
        return settings_digest(self.tokenizer, {**dataclasses.asdict(self.options), **told})

    def __call__(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Tokenise one row.

        Args:
            row: The row's fields.
            number: Position of the row in its split.

        Returns:
            ``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` (responses alone), the weights of
            the responses' tokens or None, ``length`` (tokens of the longer of the two sequences),
            the responses' scores and the pair's weight or None,
            flags for what was cut or moved, ``index`` (``number``), and ``problem`` (empty, or why
            the pair cannot be trained on; then there are no ids).

        Raises:
            InputError: If the row has another shape, the template fails, or the supplied weights do
                not match the response's tokens.
        """
        return self.batch([row], [number])[0]

    def batch(
        self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Tokenise several rows at once, with the ids of one after the other.

        Raises:
            InputError: As for one.
        """
        pairs = [
            preference_pair(row, number, self.options.rows)
            for row, number in zip(rows, numbers, strict=True)
        ]
        texts = [
            [] if pair.problem else self._renderer.texts(pair, number)
            for pair, number in zip(pairs, numbers, strict=True)
        ]
        encoded = self._encoder.encode(texts)
        return [
            self._tokenised(*parts)
            for parts in zip(rows, pairs, numbers, texts, encoded, strict=True)
        ]

    def _tokenised(
        self,
        row: Mapping[str, Any],
        pair: PreferencePair,
        number: int,
        texts: list[str],
        encoded: list[list[int]],
    ) -> dict[str, Any]:
        """Cut a pair's ids into prompt and responses of the lengths that they may have."""
        if pair.problem:
            return _row(number, pair.problem)
        if not encoded:
            return _row(number, "empty prompt")
        prompt, *full = map(self._ends.begun, encoded)
        chosen, rejected = (self._ends.ended(ids, isinstance(pair.prompt, str)) for ids in full)
        boundary = min(_shared_prefix(prompt, chosen), _shared_prefix(prompt, rejected))
        if boundary == 0:
            return _row(number, "empty prompt")
        shifted = boundary < len(prompt)
        sides = {"chosen": chosen[boundary:], "rejected": rejected[boundary:]}
        weights = {"chosen": pair.chosen_weights, "rejected": pair.rejected_weights}
        for side, text, ids in zip(sides, texts[1:], (chosen, rejected), strict=True):
            _check_weights(weights[side], len(sides[side]), side, number)
            spans = spans_of(row, side, number)
            if spans is not None:
                if self._guard.count(text):
                    raise InputError(f"row {number}: {_NO_PLACE}")
                field = row[side] if isinstance(row[side], str) else getattr(pair, side)
                places = token_places(self.tokenizer, text, self._ends.bos, len(ids), number)
                weights[side] = span_weights(places, field, text, spans, number)[boundary:]

        kept = self._cut_prompt(prompt[:boundary], max(map(len, sides.values())))
        budget = self.options.max_length - len(kept)
        cut = {side: ids[:budget] for side, ids in sides.items()}
        truncated = {side: len(ids) > budget for side, ids in sides.items()}
        if cut["chosen"] == cut["rejected"]:
            any_cut = any(truncated.values())
            return _row(number, f"identical {'after truncation' if any_cut else 'responses'}")
        return {
            **_row(number),
            **row_numbers(row, number),
            "prompt_ids": kept,
            "length": len(kept) + max(map(len, cut.values())),
            "prompt_truncated": len(kept) < boundary,
            "shifted": shifted,
            "left_out": left_out(pair, [self._guard.unmark(text) for text in texts]),
            "guarded": sum(map(self._guard.count, texts[1:])),
            **{f"{side}_ids": ids for side, ids in cut.items()},
            **{f"{side}_truncated": flag for side, flag in truncated.items()},
            **{f"{side}_weights": values and values[:budget] for side, values in weights.items()},
        }

    def _cut_prompt(self, prompt: list[int], longest_response: int) -> list[int]:
        """Cut the prompt from the left, only as far as the longer response needs."""
        room = max(self.options.prompt_limit, self.options.max_length - longest_response)
        if len(prompt) <= room:
            return prompt
        bos = [token for token in prompt[:1] if token == self.tokenizer.bos_token_id]
        return bos + prompt[len(prompt) - room + len(bos) :]


def _row(number: int, problem: str = "") -> dict[str, Any]:
    return {
        "prompt_ids": [],
        "chosen_ids": [],
        "rejected_ids": [],
        "chosen_weights": None,
        "rejected_weights": None,
        **dict.fromkeys(NUMBERS),
        "length": 0,
        "prompt_truncated": False,
        "chosen_truncated": False,
        "rejected_truncated": False,
        "shifted": False,
        "left_out": "",
        "guarded": 0,
        "index": number,
        "problem": problem,
    }


def _shared_prefix(first: list[int], second: list[int]) -> int:
    """Number of leading ids that two sequences share."""
    if second[: len(first)] == first:
        return len(first)
    pairs = zip(first, second, strict=False)
    differing = (place for place, (one, other) in enumerate(pairs) if one != other)
    return next(differing, min(len(first), len(second)))


def _check_weights(values: list[float] | None, tokens: int, side: str, number: int) -> None:
    if values is not None and len(values) != tokens:
        raise InputError(
            f"row {number}: field '{side}_weights' has {len(values)} weights, but the response has "
            f"{tokens} tokens with its terminator: give one weight per token"
        )
