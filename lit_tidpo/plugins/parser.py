"""Command-line parsing that knows plugins by their short names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import _typehints
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from lit_tidpo.errors import InputError, PluginError
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES, check_name, registered

_CONFIG_FILE = re.compile(r"[^\s=:'\"]+\.(?:ya?ml|json)\b")
_LARGEST = 2**20  # bytes: what is larger is no configuration
_RULE = "discard_init_args_on_class_path_change"


def load_named_plugins(args: Sequence[str]) -> dict[str, str]:
    """Import the plugins whose short names occur in arguments or the configurations they name.

    jsonargparse only knows short names of classes that are imported. Importing every plugin there
    is would make each run pay for, and depend on, plugins that it does not use.

    Args:
        args: Command-line arguments.

    Returns:
        What is wrong with each plugin that could not be used, by its name.
    """
    texts = list(_texts(args))
    problems = {}
    for group in (IMPORTANCE, LOSSES):
        namespace = importlib.import_module(group)
        for name in {entry.name for entry in registered(group)}:
            short, full = (rf"(?<![\w.]){re.escape(n)}(?!\w)" for n in (name, f"{group}.{name}"))
            folders = [folder for text, folder in texts if re.search(short, text)]
            _warn_of_files(f"{group}.{name}", {folder / name for folder in folders})
            if not folders and not any(re.search(full, text) for text, _ in texts):
                continue
            try:
                check_name(group, name)
                getattr(namespace, name)
            except PluginError as error:
                problems[name] = str(error)
    return problems


def _warn_of_files(plugin: str, paths: set[Path]) -> None:
    """Warn of files that jsonargparse would read in the place of a plugin, even empty ones."""
    for path in paths:
        if path.is_file():
            rank_zero_warn(
                f"the file {path} has the name of a plugin and would be read as a configuration: "
                f"move it, or write {plugin}"
            )


def _texts(args: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The arguments, the text of every configuration reachable from them, and their folders."""
    waiting, seen = [(text, Path()) for text in _without_data(args)], set()
    while waiting:
        text, folder = waiting.pop()
        yield text, folder
        for name in _file_names(text):
            # jsonargparse reads a file that a configuration names from that one's own folder.
            path = folder / Path(name).expanduser()
            if path not in seen and path.is_file() and path.stat().st_size <= _LARGEST:
                seen.add(path)
                waiting.append((path.read_text(encoding="utf-8", errors="replace"), path.parent))


def _without_data(args: Sequence[str]) -> Iterator[str]:
    """Leave out the options of the data: their files are none of a configuration."""
    is_value = False
    for text in args:
        is_data = text.startswith("--data.")
        if not is_data and not is_value:
            yield text
        is_value = is_data and "=" not in text


def _file_names(text: str) -> Iterator[str]:
    """What may be the name of a configuration file, with blanks in it or without."""
    yield from _CONFIG_FILE.findall(text)
    for line in text.splitlines():
        for value in (line, line.partition("=")[2], line.partition(": ")[2]):
            name = value.strip(" '\"")
            if name.endswith((".yaml", ".yml", ".json")):
                yield name


class PluginArgumentParser(LightningArgumentParser):
    """Parser that knows what is wrong with plugins, and lets each class start afresh.

    Arguments of a component stay with its class: where a later option or configuration names
    another class, all of the old one's go, also those that both have.
    """

    problems: dict[str, str] = {}  # noqa: RUF012  # shared by a command and its subcommands

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse command-line arguments."""
        with _fresh_arguments():
            return super().parse_args(*args, **kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration given as an object."""
        with _fresh_arguments():
            return super().parse_object(*args, **kwargs)

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Build what was parsed.

        Raises:
            InputError: If a component refuses an argument; jsonargparse would say in its place that
                it is not None either.
        """
        try:
            return super().instantiate_classes(*args, **kwargs)
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            if cause is None or cause is error:
                raise
            raise InputError(str(cause)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with the plugins known, and exit with status 2."""
        for name, problem in self.problems.items():
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) and problem not in message:
                message = f"{problem}\n{message}"
        for group, option in ((IMPORTANCE, ".importance"), (LOSSES, ".losses")):
            known = ", ".join(sorted({entry.name for entry in registered(group)}))
            line = f"Known {group} plugins: {known}"
            if option in message and line not in message:
                message += f"\n{line}"
        if "ImportanceEstimator is abstract" in message:
            message += (
                "\nName the estimator before its arguments: "
                "--model.importance hybrid --model.importance.mix 0.5"
            )
        super().error(message, ex)
        raise AssertionError("unreachable")


@contextmanager
def _fresh_arguments() -> Iterator[None]:
    """Replace jsonargparse's rule for the arguments of a class whose place another one takes.

    Its rule keeps those that the new class accepts as well: attention would inherit ``model`` from
    gradient, and SGD ``weight_decay`` from AdamW. There is no public setting for it, so this hangs
    on the name of a private function, which tests/plugins/test_parser.py checks.
    """
    rule = getattr(_typehints, _RULE, None)
    setattr(_typehints, _RULE, _discard_all)
    try:
        yield
    finally:
        setattr(_typehints, _RULE, rule)


def _discard_all(parser_or_action: object, previous: Any, value: Any) -> None:
    if previous and previous.get("class_path") not in (None, value["class_path"]):
        previous.pop("init_args", None)
        previous.pop("dict_kwargs", None)
