"""Rows to texts: what the chat template makes of messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lit_tidpo.data.guarding import Guard
from lit_tidpo.data.rows import NormalRow
from lit_tidpo.data.turns import Message
from lit_tidpo.errors import InputError, explained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpecialTokens = Literal["text", "control"]

_READ = ("content", "reasoning_content", "reasoning", "thinking")
"""Fields of a turn that are to be read."""
_SHOWN = 60
"""Characters that messages show of a text."""


class Renderer:
    """Makes texts of rows.

    Args:
        tokenizer: The tokenizer, with its chat template if the rows hold messages.
        guard: Marks special tokens in the text of messages.
        special_tokens: What one is there: ``text``, or a ``control`` token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, guard: Guard, special_tokens: SpecialTokens
    ) -> None:
        self._tokenizer = tokenizer
        self._guard = guard
        self._special_tokens = special_tokens

    def texts(self, row: NormalRow, number: int) -> list[str]:
        """The prompt alone, and with each response; nothing if there is no prompt.

        Raises:
            InputError: If there is no template, or it refuses messages or changes what is marked.
        """
        if isinstance(row.prompt, str):
            return [row.prompt, *(f"{row.prompt}{text}" for text in row.responses.values())]
        if not row.prompt:
            return []
        opened = self._render(row.prompt, row.tools, number, open_turn=True)
        turns = [[*row.prompt, *turns] for turns in row.responses.values()]
        return [opened, *(self._render(each, row.tools, number) for each in turns)]

    def part(self, row: NormalRow, turns: list[Message], number: int, open_turn: bool) -> str:
        """The prompt with the first turns of a response.

        Args:
            row: A row of messages.
            turns: The turns.
            number: Position of the row in its split, for messages.
            open_turn: Whether the assistant's next turn begins.

        Raises:
            InputError: As for the whole.
        """
        return self._render([*row.prompt, *turns], row.tools, number, open_turn)

    def _render(
        self, messages: list[Message], tools: Any, number: int, open_turn: bool = False
    ) -> str:
        if self._tokenizer.chat_template is None:
            raise InputError(
                f"row {number} holds messages, but the tokenizer {self._tokenizer.name_or_path!r} "
                "has no chat template: set chat_template"
            )
        roles = [turn["role"] for turn in messages]
        given = (messages, tools)
        if self._special_tokens == "text":
            messages, tools = (self._guard.mark(each, f"row {number}") for each in given)
        with explained(f"row {number}: the chat template refuses turns of {roles}"):
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=open_turn
            )
        if (messages, tools) != given:
            self._guard.check(str(text), f"row {number}")
        return str(text)


def left_out(row: NormalRow, texts: list[str]) -> str:
    """The first text, a response's reasoning say, that the chat template did not render."""
    for turns, text in zip((row.prompt, *row.responses.values()), texts, strict=True):
        for turn in turns if isinstance(turns, list) else []:
            functions = [call.get("function") for call in turn.get("tool_calls") or []]
            parts = [turn.get(name) for name in _READ]
            parts += [each.get("name") for each in functions if isinstance(each, dict)]
            for part in parts:
                if isinstance(part, str) and part.strip() not in text:
                    return part.strip()[:_SHOWN]
    for tool in row.tools or []:
        name = tool.get("function", tool).get("name") if isinstance(tool, dict) else None
        if isinstance(name, str) and texts and name not in texts[0]:
            return name[:_SHOWN]
    return ""
