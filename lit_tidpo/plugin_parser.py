"""Command-line parsing that knows plugins by their short names."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from lit_tidpo.errors import PluginError
from lit_tidpo.registry import IMPORTANCE, LOSSES, found

_CONFIG_FILE = re.compile(r"[^\s=:'\"]+\.(?:ya?ml|json)\b")


def load_named_plugins(args: Sequence[str]) -> dict[str, str]:
    """Import the plugins whose short names occur in arguments or the configurations they name.

    jsonargparse only knows short names of classes that are imported. Importing every plugin there
    is would make each run pay for, and depend on, plugins that it does not use.

    Args:
        args: Command-line arguments.

    Returns:
        What is wrong with each plugin that could not be used, by its name.
    """
    text = "\n".join(_texts(args))
    problems = {}
    for group in (IMPORTANCE, LOSSES):
        namespace = importlib.import_module(group)
        for name in {entry.name for entry in found(group)}:
            if not re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text):
                continue
            try:
                getattr(namespace, name)
            except PluginError as error:
                problems[name] = str(error)
                rank_zero_warn(f"{error}; the run goes on if it does not use this plugin")
    return problems


def _texts(args: Sequence[str]) -> Iterator[str]:
    """The arguments and the text of every configuration file reachable from them."""
    waiting, seen = list(args), set()
    while waiting:
        text = waiting.pop()
        yield text
        for name in _CONFIG_FILE.findall(text):
            path = Path(name).expanduser()
            if name not in seen and path.is_file():
                seen.add(name)
                waiting.append(path.read_text(encoding="utf-8"))


class PluginArgumentParser(LightningArgumentParser):
    """Parser that adds to an error what is known about the plugins it concerns."""

    problems: dict[str, str] = {}  # noqa: RUF012  # shared by a command and its subcommands

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with the plugins known, and exit with status 2."""
        for group, option in ((IMPORTANCE, ".importance"), (LOSSES, ".losses")):
            if option in message:
                known = sorted({entry.name for entry in found(group)})
                message += f"\nKnown {group} plugins: {', '.join(known)}"
        message += "".join(f"\n{problem}" for problem in self.problems.values())
        super().error(message, ex)
        raise AssertionError("unreachable")


def arguments(args: Any) -> list[str]:
    """Command-line arguments as a list of text, whatever form they were handed over in."""
    if args is None:
        return sys.argv[1:]
    return [str(entry) for entry in args] if isinstance(args, (list, tuple)) else [str(args)]
