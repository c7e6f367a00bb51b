"""Errors that a user can mend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
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


_LONGEST = 600
# Their text alone, such as a key, does not say what is wrong.
_MUTE = (LookupError, TypeError, AttributeError, AssertionError)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a library raises at a boundary into an error that a user can mend.

    Args:
        what: What cannot be done, with the setting and its value.

    Raises:
        InputError: In one line, with the library's error as the cause.
    """
    try:
        yield
    except (InputError, Warning):  # warnings may be errors
        raise
    except Exception as error:  # whatever a library makes of a user's files
        text = " ".join(str(error).split())
        name = f"{type(error).__name__}: " if isinstance(error, _MUTE) or not text else ""
        cut = "" if len(text) <= _LONGEST else " ..."
        raise InputError(f"{what}: {name}{text[:_LONGEST]}{cut}") from error


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


def numbers_of(value: Any) -> tuple[float, ...]:
    """A number, or those that a schedule of numbers runs between."""
    return getattr(value, "numbers", (value,))


def check_positive(name: str, value: float) -> None:
    """Refuse a number, or a schedule of numbers, that is not finite and above 0.

    Args:
        name: Name of the setting.
        value: What was given.

    Raises:
        InputError: If it is not.
    """
    for number in numbers_of(value):
        if not 0 < number < float("inf"):
            raise InputError(f"{name}={number}: expected a finite number above 0")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a number, or a schedule of numbers, that is not finite and 0 or more.

    Args:
        name: Name of the setting.
        value: What was given.

    Raises:
        InputError: If it is not.
    """
    for number in numbers_of(value):
        if not 0 <= number < float("inf"):
            raise InputError(f"{name}={number}: expected a finite number of 0 or more")


def check_share(name: str, value: float, below: float | None = None, why: str = "") -> None:
    """Refuse a number, or a schedule of numbers, outside the range from 0 to 1 or to ``below``.

    Args:
        name: Name of the setting.
        value: What was given.
        below: What it must be less than; None allows 1.
        why: What would become of a larger one.

    Raises:
        InputError: If it is outside.
    """
    for number in numbers_of(value):
        if not 0 <= number <= 1 or (below is not None and number >= below):
            what = "to 1" if below is None else f"to less than {below:g}"
            raise InputError(
                f"{name}={number}: expected a number from 0 {what}{why and f': {why}'}"
            )


def check_finite(name: str, value: Any) -> None:
    """Refuse numbers that are infinite or NaN, at any depth.

    Args:
        name: Name of the setting.
        value: A number, or mappings and lists of them and other plain values.

    Raises:
        InputError: With the path of the first one.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}={value}: expected a finite number")
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            check_finite(f"{name}.{key}" if key != "init_args" else name, part)
