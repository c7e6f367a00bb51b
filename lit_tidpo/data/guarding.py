"""Special tokens within the text of messages: text of theirs, and no control tokens.

A message that says ``<|im_end|>`` would end its turn, if a rendered conversation were tokenised as
a whole. What stands for a special token there is marked before the template renders it, and
tokenised as the text that it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters that Unicode keeps out of all text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_NAMES = ("role", "type")
"""Fields that templates compare with words of theirs."""


class Guard:
    """Marks what a tokenizer would take for special tokens.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {str(each) for each in tokenizer.added_tokens_decoder.values() if each.special}
        special = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        words = "|".join(map(re.escape, special))
        self._special = re.compile(words) if words else None
        self._marked = re.compile(f"{_OPEN}({words}){_CLOSE}")

    def mark(self, value: Any, place: str) -> Any:
        """Mark them in all text of a message, or in what it is made of.

        Args:
            value: Text, a message, or lists and mappings of them.
            place: Where that stands, for messages.

        Returns:
            The same, marked; the same object where nothing was.

        Raises:
            InputError: If one stands in a role.
        """
        if isinstance(value, str):
            if _OPEN in value or _CLOSE in value:
                raise InputError(f"{place} holds U+FDD0 or U+FDD1, which Unicode keeps out of text")
            marked = rf"{_OPEN}\g<0>{_CLOSE}"
            return self._special.sub(marked, value) if self._special else value
        if isinstance(value, dict):
            for name in _NAMES:
                word = value.get(name)
                if isinstance(word, str) and self._special and self._special.search(word):
                    raise InputError(f"{place}: the {name} {word!r} holds a special token")
            return {
                self.mark(name, place): each if name in _NAMES else self.mark(each, place)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self.mark(each, place) for each in value]
        return value

    def check(self, text: str, place: str) -> None:
        """Refuse rendered text in which marks were changed, so that what they held got free.

        Raises:
            InputError: If there is a part of one.
        """
        left = self.unmark(text)
        if any(each in left for each in (_OPEN, _CLOSE, r"\ufdd0", r"\ufdd1")):
            raise InputError(
                f"{place}: the chat template changes special tokens within the text of messages, "
                "so that they cannot be told from control tokens: set data.special_tokens=control "
                "if the text is to be trusted, or leave the row out"
            )

    def unmark(self, text: str) -> str:
        """Rendered text as it would be without marks."""
        return self._marked.sub(r"\1", text)

    def count(self, text: str) -> int:
        """Marks in rendered text."""
        return len(self._marked.findall(text))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rendered texts, without any that the tokenizer adds."""
        # verbose=False: sequences beyond the model's length are cut later, not a mistake.
        plain = {"add_special_tokens": False, "verbose": False, "return_attention_mask": False}
        free = [text for text in texts if _OPEN not in text]
        found = iter(self._tokenizer(free, **plain)["input_ids"] if free else [])
        return [
            self._encode_marked(text, plain) if _OPEN in text else next(found) for text in texts
        ]

    @staticmethod
    def marks(texts: Sequence[str]) -> bool:
        """Whether there is a mark in one of the texts."""
        return any(_OPEN in text for text in texts)

    def _encode_marked(self, text: str, plain: dict[str, Any]) -> list[int]:
        ids: list[int] = []
        # Parts outside and inside of marks take turns.
        for place, part in enumerate(self._marked.split(text)):
            if part:
                split = {"split_special_tokens": place % 2 == 1}
                ids += self._tokenizer(part, **plain, **split)["input_ids"]
        return ids
