"""Configuration files are read once before they are parsed, to say what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_tidpo.errors import InputError

_OPTIONS = ("-c", "--config")
_CLASS_PATH = re.compile(r"([A-Za-z_]\w*\.)+[A-Z]\w*")
_SECRET = re.compile(r"(^|_)(api_?key|token|password|passwd|secret|credentials?)$", re.IGNORECASE)


_KNOWN = ("lit_tidpo.", "lightning.pytorch.", "torch.optim.")
"""What a configuration may name under ``--known-classes``, besides plugins by their short names."""


def check_configurations(args: Sequence[str], known_classes: bool = False) -> None:
    """Refuse configurations that cannot be read, or that give a key twice.

    A parser of YAML drops the first of two without a word.

    Args:
        args: Command-line arguments.
        known_classes: Whether to refuse class paths that are not of this package, a plugin that is
            registered, Lightning or PyTorch's optimizers: a configuration of a stranger could name
            any class that can be imported here.

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
        if known_classes:
            _check_classes(tree, file)


def _check_classes(node: Any, file: Path) -> None:
    """Any text that could be a class path counts: a callback may stand there without its key."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_classes(entry, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "class_path" and isinstance(value, yaml.ScalarNode):
                _check_class(value, file)
            _check_classes(value, file)
    elif _CLASS_PATH.fullmatch(node.value):
        _check_class(node, file)


def _check_class(node: Any, file: Path) -> None:
    name = node.value
    if "." in name and not f"{name}.".startswith(_KNOWN):
        raise InputError(
            f"configuration {str(file)!r} names the class {name!r} in line "
            f"{node.start_mark.line + 1}: --known-classes allows those of {', '.join(_KNOWN)[:-1]} "
            "and plugins by their short names alone"
        )


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


def without_secrets(value: Any, name: str = "") -> Any:
    """A configuration in which settings called like secrets, an ``api_key`` say, have no value.

    Args:
        value: Plain mappings, lists and values.
        name: Name of the setting.
    """
    if isinstance(value, dict):
        return {key: without_secrets(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [without_secrets(each, name) for each in value]
    return "***" if isinstance(value, str) and _SECRET.search(name) else value
