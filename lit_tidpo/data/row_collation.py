"""Rows as they are to a batch, for a loader of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_tidpo.data.collation import RowsCollator
from lit_tidpo.data.examples import content_number
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError
from lit_tidpo.structures import ResponseBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowCollator:
    """Tokenises rows of any of the documented shapes and stacks them: a loader's ``collate_fn``.

    Args:
        tokenizer: The tokenizer.
        options: Lengths, and how rows are read; None takes the defaults.

    Example:
        >>> from lit_tidpo.models.tokenizer import load_tokenizer
        >>> collator = RowCollator(load_tokenizer("builtin:policy"))
        >>> row = {"prompt": "def one():", "chosen": " return 1", "rejected": " return 2"}
        >>> collator([row, row]).roles
        ('chosen', 'rejected')
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: TokenizationOptions | None = None
    ) -> None:
        self._tokenise = PairTokenizer(tokenizer, options or TokenizationOptions())
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self._collate = RowsCollator(
            int(end) if pad is None else int(pad), max_length=self._tokenise.options.max_length
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> ResponseBatch:
        """Make a batch, in which equal rows have the same index.

        Raises:
            InputError: If a row cannot be trained on; it is counted within the batch.
        """
        pairs = self._tokenise.batch(rows, range(len(rows)))
        for place, pair in enumerate(pairs):
            if pair["problem"]:
                raise InputError(
                    f"row {place} of the batch cannot be used: {pair['problem']}: leave it out"
                )
        return self._collate([{**pair, "index": content_number(pair)} for pair in pairs])
