"""``lit-tidpo completion``: a script that lets a shell complete commands, options and choices."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lit_tidpo.commands.option_sources import Option
from lit_tidpo.commands.options import (
    FUNCTIONS,
    TRAINING,
    choices,
    command_options,
    function_options,
)
from lit_tidpo.errors import InputError

_FILES = (
    "config",
    "ckpt_path",
    "data.source",
    "model.policy.path",
    "tokens.path",
    "source",
    "reference",
    "include",
    "output",
)
_OTHERS = {
    "estimate": [Option("memory", "GB", ""), Option("devices", "int", "")],
    "plugins": [Option("json", "", ""), Option("needs", "", "")],
    "convert": [Option("output", "FILE", ""), Option("rows", "N", ""), Option("file")],
    "completion": [Option("shell", "{bash,zsh,tcsh}")],
    "schema": [Option("command", f"{{{','.join(TRAINING)}}}")],
}
"""Options of commands that read their words themselves."""


def run(args: list[str]) -> None:
    """Print the script for a shell."""
    if find_spec("shtab") is None:
        raise InputError("completion needs shtab: pip install 'lit-tidpo[completion]'")
    shtab: Any = import_module("shtab")
    if len(args) != 2 or args[1] not in shtab.SUPPORTED_SHELLS:
        raise InputError(f"completion takes one of {shtab.SUPPORTED_SHELLS}, got {args[1:]}")
    sys.stdout.write(shtab.complete(_parser(shtab.FILE), args[1]))


def _parser(files: Any) -> argparse.ArgumentParser:
    """The commands with their options, to be completed alone."""
    parser = argparse.ArgumentParser("lit-tidpo", add_help=False)
    commands = parser.add_subparsers()
    for name in TRAINING:
        _add_options(commands.add_parser(name, help=name, add_help=False), name, False, files)
    sft = commands.add_parser("sft", help="sft", add_help=False).add_subparsers()
    for name in TRAINING[:3]:
        _add_options(sft.add_parser(name, help=name, add_help=False), name, True, files)
    for name in FUNCTIONS:
        command = commands.add_parser(name, help=name, add_help=False)
        for option in function_options(name):
            _add(command, option, files, "--" if option.default is not None else "")
    for name, options in _OTHERS.items():
        command = commands.add_parser(name, help=name, add_help=False)
        for option in options:
            _add(command, option, files, "--" if option.default is not None else "")
    _add_options(commands.choices["estimate"], "fit", False, files)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: str, sft: bool, files: Any) -> None:
    for options in command_options(command, sft).values():
        for option in options:
            if not option.linked:
                _add(parser, option, files, "--")


def _add(parser: argparse.ArgumentParser, option: Option, files: Any, dashes: str) -> None:
    flag = {"action": "store_true"} if dashes and not option.kind else {"choices": choices(option)}
    # Without the percent signs that argparse would fill in.
    text = option.text.replace("``", "").replace("%", "%%")
    action: Any = parser.add_argument(f"{dashes}{option.name}", help=text, **flag)
    if option.name in _FILES or (not dashes and not option.kind.startswith("{")):
        action.complete = files
