"""Where sequences begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Ends:
    """Lets ids begin with the tokenizer's BOS, if it puts one there, and end with one terminator.

    Args:
        tokenizer: The tokenizer.

    Attributes:
        bos: What sequences begin with: an id or none.

    Raises:
        InputError: If the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path!r} has no eos_token, so responses would "
                "have no end: set one"
            )
        self._tokenizer = tokenizer
        self._eos = int(tokenizer.eos_token_id)
        self._ends = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        starts_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.bos = [int(tokenizer.bos_token_id)] if starts_with_bos else []

    def begun(self, ids: list[int]) -> list[int]:
        """Ids that begin with the BOS."""
        return ids if ids[:1] == self.bos else [*self.bos, *ids]

    def ended(self, ids: list[int], is_plain: bool) -> list[int]:
        """Ids of prompt and response with their end: of plain text one EOS, else the template's.

        Raises:
            InputError: If the template puts none.
        """
        return self._end_text(ids) if is_plain else self._end_chat(ids)

    def _end_text(self, ids: list[int]) -> list[int]:
        """Let the ids end in exactly one EOS."""
        while ids[-1:] == [self._eos]:
            ids = ids[:-1]
        return [*ids, self._eos]

    def _end_chat(self, ids: list[int]) -> list[int]:
        """Cut the whitespace that the template puts after its own terminator."""
        end = len(ids)
        while end and ids[end - 1] not in self._ends and self._is_blank(ids[end - 1]):
            end -= 1
        if not end or ids[end - 1] not in self._ends:
            raise InputError(
                "the chat template ends the assistant's turn without a special token, so that a "
                f"model would not learn to stop (it ends in {self._tokenizer.decode(ids[-8:])!r}): "
                "let it put eos_token there"
            )
        return ids[:end]

    def _is_blank(self, token: int) -> bool:
        return not str(self._tokenizer.decode([token])).strip()
