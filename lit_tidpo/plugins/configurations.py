"""Configuration files are read once before they are parsed, to say what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_tidpo.errors import InputError

_OPTIONS = ("-c", "--config")


def check_configurations(args: Sequence[str]) -> None:
    """Refuse configurations that cannot be read, or that give a key twice.

    A parser of YAML drops the first of two without a word.

    Args:
        args: Command-line arguments.

    Raises:
        InputError: With the file and the line.
    """
    for file in map(Path, _files(args)):
        if not file.is_file():
            continue  # the parser says so
        try:
            tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            raise InputError(
                f"configuration {str(file)!r} is not UTF-8 at byte {error.start}: convert it"
            ) from error
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"configuration {str(file)!r} is no YAML: {reason}") from error
        _check_keys(tree, file)


def _files(args: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            yield value if equals else next(iter(args[place + 1 : place + 2]), "")


def _check_keys(node: Any, file: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_keys(entry, file)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in lines and key.value != "<<":
            raise InputError(
                f"configuration {str(file)!r} gives {key.value!r} twice, in lines "
                f"{lines[key.value]} and {line}: put both together"
            )
        lines[key.value] = line
        _check_keys(value, file)
