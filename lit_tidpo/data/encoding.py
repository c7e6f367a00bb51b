"""Ids of texts, of which each word is tokenised once.

A tokenizer that first cuts text into words, by a pattern that looks at nothing before a word, gives
the two sides of a space after other text the same ids together and apart. So the words of a data
set, which are few, are tokenised rather than its texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenizers import models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_tidpo.data.guarding import Guard

_CUT = re.compile(r"(?<=[!-~])(?= )|(?<=[A-Za-z])(?=\n)")
"""Between what is printed of ASCII and a space, or a letter and the end of its line."""
_KEPT = 1_000_000
"""Characters of words whose ids are kept."""

_PATTERNS = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + "| ?"
    r"[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "{1,3}")
)
"""What cuts words in Qwen 2 and 3, and in Llama 3; GPT-2's pattern is within ``ByteLevel``."""


class WordEncoder:
    """Tokenises groups of texts, of which each mostly begins with the first.

    Args:
        tokenizer: The tokenizer.
        guard: Encodes single texts, of which some have special tokens marked as text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, guard: Guard) -> None:
        self._guard = guard
        self._cuts_words = cuts_words(tokenizer)
        self._backend: Any = tokenizer.backend_tokenizer if self._cuts_words else None
        self._known: dict[str, list[int]] = {}
        self._room = _KEPT

    def encode(self, groups: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Ids of each text of each group, without any that the tokenizer adds."""
        cut = [self._words(group) for group in groups]
        words = {*chain.from_iterable(chain.from_iterable(cut))}
        new = [word for word in words if word not in self._known]
        self._known.update(zip(new, self._encoded(new), strict=True))
        encoded = [self._joined(*parts) if parts else [] for parts in cut]
        self._room -= sum(map(len, new))
        if self._room < 0:
            self._known.clear()
            self._room = _KEPT
        return encoded

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, where it can be by the tokenizer's backend alone.

        What transformers makes of an encoding besides its ids costs half as much as the encoding.
        """
        if not self._cuts_words or self._guard.marks(texts):
            return self._guard.encode(texts)
        backend = self._backend  # in which other calls may have left their settings
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        backend.encode_special_tokens = False
        return [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _words(self, group: Sequence[str]) -> list[list[str]]:
        """What all texts begin with, and the rest of each, in words."""
        if not group:
            return []
        if not self._cuts_words or self._guard.marks(group):
            return [[], *([text] for text in group)]
        first, *others = group
        *shared, last = _CUT.split(first)
        start = len(first) - len(last)
        if not all(text.startswith(first) for text in others):
            return [[], *map(_CUT.split, group)]
        return [shared, [last], *(_CUT.split(text[start:]) for text in others)]

    def _joined(self, shared: list[str], *rests: list[str]) -> list[list[int]]:
        """Ids of each text of a group."""
        known = self._known
        first = [each for word in shared for each in known[word]]
        return [first + [each for word in rest for each in known[word]] for rest in rests]


def cuts_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text that is cut before a space has the ids of the whole.

    Only tokenizers of which that is known: byte-level BPE without dropout, whose words are those
    of GPT-2, Llama 3 or Qwen, and none of whose added tokens holds or swallows whitespace.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.BPE) or backend.model.dropout:
        return False
    added = tokenizer.added_tokens_decoder.values()
    if any(t.lstrip or t.rstrip or t.single_word or re.search(r"\s", t.content) for t in added):
        return False
    normalizer = backend.normalizer and json.loads(backend.normalizer.__getstate__())
    if normalizer and normalizer["type"] != "NFC":
        return False
    state = backend.pre_tokenizer and json.loads(backend.pre_tokenizer.__getstate__())
    stages = state["pretokenizers"] if state and state["type"] == "Sequence" else [state or {}]
    return all(map(_is_known, stages)) and any(map(_cuts_at_whitespace, stages))


def _is_known(stage: dict[str, Any]) -> bool:
    is_bytes = stage.get("type") == "ByteLevel" and not stage["add_prefix_space"]
    return is_bytes or stage.get("type") == "Digits" or _cuts_at_whitespace(stage)


def _cuts_at_whitespace(stage: dict[str, Any]) -> bool:
    if stage.get("type") == "ByteLevel":
        return bool(stage["use_regex"]) and not stage["add_prefix_space"]
    if stage.get("type") != "Split" or stage["behavior"] != "Isolated" or stage["invert"]:
        return False
    return stage["pattern"].get("Regex") in _PATTERNS


def settings_digest(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """Name of a tokenizer's content and options: the same in every process.

    Args:
        tokenizer: The tokenizer, whose template counts rather than where it came from.
        options: Further settings, as plain data.

    Returns:
        Hexadecimal digest.
    """
    special = [*map(str, tokenizer.all_special_tokens), tokenizer.bos_token, tokenizer.eos_token]
    content = {**options, "special": special, "chat_template": tokenizer.chat_template}
    hashed = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for part in _parts(tokenizer):
        hashed.update(part)
    return hashed.hexdigest()


def _parts(tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """All that a tokenizer does, but padding and truncation, which earlier calls leave there."""
    added = sorted((number, repr(each)) for number, each in tokenizer.added_tokens_decoder.items())
    yield repr(added).encode()
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        content = [type(tokenizer).__qualname__, tokenizer.get_vocab()]
        yield json.dumps(content, sort_keys=True).encode()
        return
    for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder"):
        part = getattr(backend, name)
        yield b"" if part is None else part.__getstate__()
