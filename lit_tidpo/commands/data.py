"""``lit-tidpo data``: what a run would see of a data set."""

from __future__ import annotations

import sys
from typing import Any

from lit_tidpo.data.ranked import Against, TrainedTurns
from lit_tidpo.data.rendering import SpecialTokens
from lit_tidpo.data.reports import InvalidRows
from lit_tidpo.data.shapes import describe_shapes, sides_of_columns
from lit_tidpo.errors import InputError


def run(args: list[str]) -> None:
    """Print the shapes that rows may have, or an overview; see :func:`show_data`."""
    if args[1:] == ["--shapes"]:
        sys.stdout.write(describe_shapes())
        return
    from jsonargparse import auto_cli

    auto_cli(show_data, args=args[1:], as_positional=True)


def show_data(
    source: str | list[dict[str, Any]],
    tokenizer: str,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    columns: dict[str, str | None] | None = None,
    against: Against = "random",
    score: str | None = None,
    trained_turns: TrainedTurns = "single",
    max_rows: int | None = None,
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    chat_template: str | None = None,
    special_tokens: SpecialTokens = "text",
    invalid_rows: InvalidRows = "raise",
    tokenizer_revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    show: int = 3,
) -> None:
    """Print what a run would see of a data set: counts, shapes, problems, lengths and rows.

    Ends in the error, with status 2, in which a run would.
    The options are those of ``fit``, without their ``data.``; --shapes alone prints the shapes that
    rows may have.

    Args:
        source: Data set, or a list of several, as for ``fit``.
        tokenizer: Tokenizer: path, name on the Hub, or ``builtin:NAME``.
        split: Split to look at.
        name: Configuration of a Hub data set that has several.
        revision: Branch, tag or commit of a Hub data set.
        columns: For each of our names of columns the one in the data.
        against: Which of the ranked completions the best one stands against.
        score: Field of ranked completions that ranks them.
        trained_turns: Turns of a response: a ``single`` one, or ``all`` of the assistant's.
        max_rows: Read only the first rows; None reads all.
        max_length: Most tokens of prompt and response together.
        max_prompt_length: Tokens that a prompt keeps however long the responses are.
        chat_template: Jinja text or path of a template that replaces the tokenizer's own.
        special_tokens: What a special token within the text of a message is.
        invalid_rows: ``raise`` an error of rows that cannot be used, or ``drop`` them.
        tokenizer_revision: Branch, tag or commit of a tokenizer on the Hub.
        trust_remote_code: Let the tokenizer's repository run its own code.
        cache_dir: Folder for downloaded data; None means that of ``datasets``.
        show: Rows whose texts are shown.

    Raises:
        InputError: If the data or the tokenizer cannot be read, or a run would refuse rows.
    """
    from lit_tidpo.data.datamodule import PreferenceDataModule
    from lit_tidpo.data.mixing import check_kinds
    from lit_tidpo.data.overview import overview

    if show < 0:
        raise InputError(f"show must be at least 0; got {show}")
    data = PreferenceDataModule(
        source,
        tokenizer,
        tokenizer_revision=tokenizer_revision,
        trust_remote_code=trust_remote_code,
        name=name,
        revision=revision,
        columns=columns,
        against=against,
        score=score,
        trained_turns=trained_turns,
        train_split=split,
        max_rows=max_rows,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        chat_template=chat_template,
        special_tokens=special_tokens,
        invalid_rows=invalid_rows,
        cache_dir=cache_dir,
    )
    seen = []
    for label, rows in data.raw_rows(split):
        sys.stdout.write(f"{label}\n")
        sides = sides_of_columns(rows.column_names)
        found = overview(rows, split, data.pair_tokenizer, show, sides)
        seen.append((label, found))
        for line in found.lines():
            sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    for label, found in seen:
        found.check(invalid_rows, label)
    check_kinds((found.report for _, found in seen), data.source.label)
