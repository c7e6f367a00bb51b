"""Rows to token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_tidpo.data.context import ContextFinder, shared_prefix
from lit_tidpo.data.encoding import WordEncoder, settings_digest
from lit_tidpo.data.ends import Ends
from lit_tidpo.data.fields import check_characters, row_numbers
from lit_tidpo.data.guarding import Guard
from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.rendering import Renderer, SpecialTokens, left_out
from lit_tidpo.data.rows import NormalRow, normal_row
from lit_tidpo.data.spans import span_weights, spans_of, token_places
from lit_tidpo.data.tokenised import blank_row
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
    """Turn a row of a data set into the ids of a prompt and its responses.

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
        self._context = ContextFinder(tokenizer, self._renderer, self._encoder, self._ends)

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
            the responses' tokens or None, whether each is context or None,
            ``length`` (tokens of the longer of the two sequences),
            the responses' scores and the pair's weight or None,
            flags for what was cut or moved, ``index`` (``number``), and ``problem`` (empty, or why
            the pair cannot be trained on; then there are no ids). Of a single response there are
            ``completion_ids`` and its ``label``.

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
        found = [
            normal_row(row, number, self.options.rows)
            for row, number in zip(rows, numbers, strict=True)
        ]
        texts = [
            [] if row.problem else self._renderer.texts(row, number)
            for row, number in zip(found, numbers, strict=True)
        ]
        try:
            encoded = self._encoder.encode(texts)
        except (TypeError, UnicodeEncodeError):
            for row, number in zip(rows, numbers, strict=True):
                check_characters(row, f"row {number}")
            raise
        return [
            self._tokenised(*parts)
            for parts in zip(rows, found, numbers, texts, encoded, strict=True)
        ]

    def _tokenised(
        self,
        given: Mapping[str, Any],
        row: NormalRow,
        number: int,
        texts: list[str],
        encoded: list[list[int]],
    ) -> dict[str, Any]:
        """Cut a row's ids into prompt and responses of the lengths that they may have."""
        sides = tuple(row.responses)
        if row.problem or not encoded:
            return blank_row(sides, number, row.problem or "empty prompt")
        prompt, *full = map(self._ends.begun, encoded)
        full = [self._ends.ended(ids, row.is_text) for ids in full]
        boundary = min(shared_prefix(prompt, ids) for ids in full)
        if boundary == 0:
            return blank_row(sides, number, "empty prompt")
        weights = self._weights(given, row, number, texts[1:], full, boundary)
        kept = self._cut_prompt(prompt[:boundary], max(map(len, full)) - boundary)
        budget = self.options.max_length - len(kept)
        cut = [ids[boundary : boundary + budget] for ids in full]
        truncated = [len(ids) - boundary > budget for ids in full]
        if len(cut) > 1 and cut[0] == cut[1]:
            how = "after truncation" if any(truncated) else "responses"
            return blank_row(sides, number, f"identical {how}")
        others = [
            (flags := self._context(row, side, ids, boundary, number)) and flags[:budget]
            for side, ids in zip(sides, full, strict=True)
        ]
        if any(flags and all(flags) for flags in others):
            return blank_row(sides, number, "no turn of the assistant after truncation")
        found = {
            **blank_row(sides, number),
            **row_numbers(given, number),
            "prompt_ids": kept,
            "length": len(kept) + max(map(len, cut)),
            "prompt_truncated": len(kept) < boundary,
            "shifted": boundary < len(prompt),
            "left_out": left_out(row, [self._guard.unmark(text) for text in texts]),
            "guarded": sum(map(self._guard.count, texts[1:])),
        }
        for side, ids, flags, is_cut in zip(sides, cut, others, truncated, strict=True):
            found[f"{side}_ids"] = ids
            found[f"{side}_context"] = flags
            found[f"{side}_truncated"] = is_cut
            found[f"{side}_weights"] = (own := weights[side]) and own[:budget]
        if row.label is not None:
            found["label"] = row.label
        return found

    def _weights(
        self,
        given: Mapping[str, Any],
        row: NormalRow,
        number: int,
        texts: list[str],
        full: list[list[int]],
        boundary: int,
    ) -> dict[str, list[float] | None]:
        """Weights of the tokens of each response that the row gives, or its marked spans."""
        weights = dict(row.weights)
        marked = any(f"{side}_spans" in given for side in row.responses)
        for (side, said), text, ids in zip(row.responses.items(), texts, full, strict=True):
            _check_weights(weights[side], len(ids) - boundary, side, number)
            if not marked:
                continue
            # Spans of text without a prompt of its own count from the start of the whole.
            field = given[side] if isinstance(given.get(side), str) else said
            spans = spans_of(given, field, side, number)
            if self._guard.count(text):
                raise InputError(f"row {number}: {_NO_PLACE}")
            places = token_places(self.tokenizer, text, self._ends.bos, len(ids), number)
            weights[side] = span_weights(places, field, text, spans, number)[boundary:]
        return weights

    def _cut_prompt(self, prompt: list[int], longest_response: int) -> list[int]:
        """Cut the prompt from the left, only as far as the longer response needs."""
        room = max(self.options.prompt_limit, self.options.max_length - longest_response)
        if len(prompt) <= room:
            return prompt
        bos = [token for token in prompt[:1] if token == self.tokenizer.bos_token_id]
        return bos + prompt[len(prompt) - room + len(bos) :]


def _check_weights(values: list[float] | None, tokens: int, side: str, number: int) -> None:
    if values is not None and len(values) != tokens:
        raise InputError(
            f"row {number}: field '{side}_weights' has {len(values)} weights, but the response has "
            f"{tokens} tokens with its terminator: give one weight per token"
        )
