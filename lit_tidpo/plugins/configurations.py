"""Configuration files are read once before they are parsed, to say what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lit_tidpo.errors import InputError, explained

_OPTIONS = ("-c", "--config")
_SECRET = re.compile(
    r"(token|apikey|accesskey|privatekey|secret|secretkey|password|passwd|credentials?|authorization"
    r"|auth|webhook(url)?)$"
)
_SECRET_LIST = "tokens"
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


_KNOWN = ("lit_tidpo.", "lightning.pytorch.", "torch.optim.")
"""What a configuration may name under ``--known-classes``, besides plugins by their short names."""


def check_configurations(args: Sequence[str], known_classes: bool = False) -> None:
    """Refuse configurations that cannot be read, or that give a key twice.

    A parser of YAML drops the first of two without a word.

    Args:
        args: Command-line arguments.
        known_classes: Whether to refuse names of what is not of this package, a plugin that is
            registered, Lightning or PyTorch's optimizers, and files that could hold such: a
            configuration of a stranger could name anything that can be imported here.

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
        if not isinstance(tree, yaml.MappingNode):
            what = "is empty" if tree is None else "holds no options"
            raise InputError(f"configuration {str(file)!r} {what}: expected model, data, trainer")
        with explained(f"configuration {str(file)!r} cannot be read"):  # one that holds itself
            _check_keys(tree, file)
        if known_classes:
            _check_names(tree, file)


def _check_names(node: Any, file: Path) -> None:
    """Refuse any text that names something to import, or a file that could name it."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_names(entry, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "trust_remote_code" and value.value != "false":
                raise _foreign(file, key, "asks for trust_remote_code")
            _check_names(value, file)
    elif node.value[:1] in ("[", "{"):  # which the parser would read as well
        with suppress(yaml.YAMLError):  # then it is plain text
            _check_names(yaml.compose(node.value, Loader=yaml.SafeLoader), file)
    elif Path(node.value).suffix in (".yaml", ".yml", ".json") and Path(node.value).exists():
        raise _foreign(file, node, f"names the file {node.value!r}")
    elif "." in node.value and not f"{node.value}.".startswith(_KNOWN) and _is_name(node.value):
        raise _foreign(file, node, f"names the class {node.value!r}")


def _is_name(text: str) -> bool:
    """Whether it is a path of names that starts at a module; none is imported to find out."""
    parts = text.split(".")
    try:
        return all(map(str.isidentifier, parts)) and find_spec(parts[0]) is not None
    except (ImportError, ValueError):
        return True


def _foreign(file: Path, node: Any, what: str) -> InputError:
    return InputError(
        f"configuration {str(file)!r} {what} in line {node.start_mark.line + 1}: --known-classes "
        f"allows what starts with {', '.join(_KNOWN)} and plugins by their short names alone"
    )


def _files(args: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            yield value if equals else next(iter(args[place + 1 : place + 2]), "")


def named_keys(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Full names of all keys of the configurations that are named, and where each stands.

    Args:
        args: Command-line arguments whose configurations :func:`check_configurations` has checked.

    Yields:
        Names with dots, and words for an error: file and line.
    """
    for file in map(Path, _files(args)):
        if file.is_file():
            tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            for name, line in _names(tree, ""):
                yield name, f"configuration {str(file)!r}, line {line}: no"


def _names(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value != "<<":  # what it merges stands where it was defined
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _names(value, f"{name}.")


def _check_keys(node: Any, file: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_keys(entry, file)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"configuration {str(file)!r} has no name as a key in line {line}")
        if key.value in lines and key.value != "<<":
            raise InputError(
                f"configuration {str(file)!r} gives {key.value!r} twice, in lines "
                f"{lines[key.value]} and {line}: put both together"
            )
        lines[key.value] = line
        _check_keys(value, file)


def without_secrets(value: Any, name: str = "") -> Any:
    """A configuration without secrets: settings called like one, and logins in addresses.

    Args:
        value: Plain mappings, lists and values.
        name: Name of the setting.
    """
    plain = re.sub(r"[^a-z]", "", name.lower())
    kept = value is None or isinstance(value, bool)
    if not kept and (_SECRET.search(plain) or (plain == _SECRET_LIST and isinstance(value, list))):
        return "***"
    if isinstance(value, dict):
        return {key: without_secrets(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [without_secrets(each) for each in value]
    return _LOGIN.sub("***@", value) if isinstance(value, str) else value
