"""What a user has of another trainer: a file, or the line that starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_tidpo.converting.options import Option, plain
from lit_tidpo.errors import InputError, explained

_FILES = (".yaml", ".yml", ".json")


def read_file(path: str) -> dict[str, Any]:
    """Options of a YAML or JSON file.

    Raises:
        InputError: If there is none, or it holds no options.
    """
    with explained(f"configuration {path!r} cannot be read"):
        given = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        raise InputError(f"configuration {path!r} holds no options: expected names and values")
    return {str(name): _number(value) for name, value in given.items()}


def read_assignments(words: Sequence[str]) -> dict[str, Any]:
    """Options of a line of LLaMA-Factory: a file, and ``name=value`` for what counts above it.

    Raises:
        InputError: If a word is neither.
    """
    if any(word.startswith("--") for word in words):
        return read_options(words, {})
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and word.endswith(_FILES):
            given |= read_file(word)
        elif equals:
            given[name] = plain(value)
        else:
            raise InputError(f"{word!r}: expected a .yaml or .json file, or name=value")
    return given


def read_options(words: Sequence[str], options: Mapping[str, Option]) -> dict[str, Any]:
    """Options of a line as transformers' parser reads it, over those of ``--config FILE``.

    ``--no_NAME`` is false, and a name without a value true; several values are a list.

    Args:
        words: The line's words.
        options: Options that there are.

    Raises:
        InputError: If a word belongs to no option.
    """
    given: dict[str, Any] = {}
    name = ""
    typed: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            typed[name] = [value] if equals else []
        elif name:
            typed[name].append(word)
        else:
            raise InputError(f"{word!r} belongs to no option: expected --name value")
    for file in typed.pop("config", []):
        given |= read_file(file)
    for name, values in typed.items():
        if name not in options and name.removeprefix("no_") in options and not values:
            given[name.removeprefix("no_")] = False
        else:
            read = [plain(value) for value in values]
            given[name] = True if not read else read[0] if len(read) == 1 else read
    return given


def _number(value: Any) -> Any:
    """A value of a YAML, in which 1e-6 is a text."""
    return plain(value) if isinstance(value, str) else value
