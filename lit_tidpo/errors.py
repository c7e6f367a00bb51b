"""Errors that a user can mend."""

from __future__ import annotations

from typing import Any, get_args


class InputError(ValueError):
    """A setting or a piece of data cannot be used.

    The message names the value, what was expected and what to do. The command line prints it as one
    line, without a traceback.
    """


class PluginError(InputError):
    """A plugin is unknown, broken, duplicated or of the wrong type."""


class NonFiniteError(InputError):
    """A supervised value became NaN or infinite."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: Name of the setting.
        value: What was given.
        choices: A ``Literal``.

    Raises:
        InputError: If the value is not one of them.
    """
    if value not in get_args(choices):
        raise InputError(f"{name}={value!r}: expected one of {get_args(choices)}")


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not finite and above 0.

    Args:
        name: Name of the setting.
        value: What was given.

    Raises:
        InputError: If it is not.
    """
    if not 0 < value < float("inf"):
        raise InputError(f"{name}={value}: expected a finite number above 0")
