"""Options of another trainer: what becomes of each, and what a user gave."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from lit_tidpo.errors import InputError, explained

Fate = Literal["same", "near", "idle", "none"]
FATES: dict[Fate, str] = {
    "same": "same",
    "near": "nearly",
    "idle": "not needed",
    "none": "no counterpart",
}
"""What becomes of an option: it does the same; it differs as told; it changes no number of a run
here; or nothing here does what it does."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)

_SECRET = re.compile(r"(token|key|secret|url)$")


@dataclass(frozen=True)
class Option:
    """An option of another trainer.

    Attributes:
        name: Its name there.
        default: Its default there, under which it is taken where it is not given.
        fate: What becomes of it.
        to: The option here that it becomes; empty where there is none.
        why: What differs, why it is not needed, or what to do instead.
        copied: Whether its value is that of ``to`` as it is.
        kind: Type of its values, where the default does not show it.
    """

    name: str
    default: Any
    fate: Fate
    to: str = ""
    why: str = ""
    copied: bool = False
    kind: type | None = None

    def value(self, given: Any) -> Any:
        """A given value, as a number or truth value where the option has those.

        Raises:
            InputError: If it is of another type.
        """
        kind = self.kind or (type(self.default) if self.default is not None else None)
        if given is None or kind is None or (isinstance(given, kind) and kind is not int):
            return None if given in ("None", "null") and self.default is None else given
        if kind is bool and str(given).lower() in _WORDS:
            return _WORDS[str(given).lower()]
        if kind in (int, float) and not isinstance(given, bool) and _NUMBER.fullmatch(str(given)):
            number = float(given)
            if kind is float or number == int(number):
                return kind(number)
        if kind is list:
            parts = plain(given) if _is_text(given) else given
            return (
                parts
                if isinstance(parts, list)
                else [plain(p.strip()) for p in str(parts).split(",")]
            )
        if kind is str:
            return "no" if given is False else str(given)  # an unquoted no of a YAML
        if kind is dict and _is_text(given) and given.startswith("{"):
            with explained(f"{self.name}={given!r} is no JSON"):
                return dict(json.loads(given))
        names = {bool: "true or false", dict: "a mapping"}
        raise InputError(f"{self.name}={given!r}: expected {names.get(kind, 'a number')}")


_WORDS = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def plain(text: str) -> Any:
    """What a word of a command line says: a number, a list, a mapping, or the word."""
    if _NUMBER.fullmatch(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    try:
        return yaml.safe_load(text) if text[:1] in "[{" or text.lower() in _LITERALS else text
    except yaml.YAMLError:
        return text


_LITERALS = ("true", "false", "null", "none")


def same(name: str, default: Any, to: str, kind: type | None = None) -> Option:
    """An option whose value is that of an option here."""
    return Option(name, default, "same", to, copied=True, kind=kind)


def becomes(
    name: str, default: Any, to: str, near: str = "", kind: type | None = None, why: str = ""
) -> Option:
    """An option that becomes others; ``near`` says what differs then."""
    return Option(name, default, "near" if near else "same", to, near or why, kind=kind)


def idle(default: Any, why: str, *names: str) -> list[Option]:
    """Options that change no number of a run here."""
    return [Option(name, default, "idle", why=why) for name in names]


def lacking(name: str, default: Any, why: str, kind: type | None = None) -> Option:
    """An option that nothing here does; ``why`` says what to do."""
    return Option(name, default, "none", why=why, kind=kind)


@dataclass
class Conversion:
    """A conversion under way.

    Attributes:
        options: All options of the other trainer, by name.
        given: What the user gave, by name.
        tree: The configuration so far.
        told: What is to be told of an option, by its name: its fate in this conversion, and words.
        rows: Number of training rows, where the user said it.
    """

    options: Mapping[str, Option]
    given: dict[str, Any]
    rows: int | None = None
    tree: dict[str, Any] = field(default_factory=dict)
    told: dict[str, tuple[Fate, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = []
        for name in self.given.keys() - self.options.keys():
            near = difflib.get_close_matches(name, self.options, n=1)
            unknown.append(f"{name!r} ({f'did you mean {near[0]!r}?' if near else 'leave it out'})")
        if unknown:
            raise InputError(f"unknown options: {', '.join(sorted(unknown))}")
        self.given = {name: self.options[name].value(value) for name, value in self.given.items()}

    def __getitem__(self, name: str) -> Any:
        """The value of an option, or its default."""
        return self.given.get(name, self.options[name].default)

    def set(self, path: str, value: Any) -> None:
        """Set an option here, named with its dots."""
        *parents, last = path.split(".")
        place = self.tree
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value

    def copy(self) -> None:
        """Set all options whose values are copied, and note those without a counterpart."""
        for name, option in self.options.items():
            if option.copied and (name in self.given or option.default is not None):
                self.set(option.to, self[name])
            if option.fate == "none" and self.changes(name):
                self.tell(name, "none", option.why)

    def changes(self, name: str) -> bool:
        """Whether the user gave another value than the default, or any that says something."""
        value = self[name]
        return name in self.given and value != self.options[name].default and value not in _NOTHING

    def tell(self, name: str, fate: Fate, why: str) -> None:
        """Tell of an option what this configuration makes of it.

        What has no counterpart stays so, whatever else is told of the option.
        """
        if self.told.get(name, ("",))[0] != "none":
            self.told[name] = (fate, why)

    def idle(self, why: str, *names: str) -> None:
        """Tell of options that were given, but do nothing in this configuration."""
        for name in names:
            if name in self.given:
                self.tell(name, "idle", why)

    def report(self) -> list[tuple[str, str, str, str]]:
        """Name, value, fate and words of each option that was given, or is told of."""
        lines = []
        for name in [*self.given, *(name for name in self.told if name not in self.given)]:
            option = self.options[name]
            fate, why = self.told.get(name, (option.fate, option.why))
            if fate == "none" and name not in self.told:  # without it, nothing is asked for
                fate, why = "idle", "at this value it does nothing"
            why = "" if fate == "same" else why
            words = f"{option.to}{': ' * bool(option.to and why)}{why}"
            value = "***" if _SECRET.search(name) else json.dumps(self[name], default=str)
            lines.append((name, value, FATES[fate], words))
        return lines

    @property
    def lacks(self) -> dict[str, str]:
        """What to do about each option without a counterpart."""
        return {name: why for name, (fate, why) in self.told.items() if fate == "none"}


_NOTHING: tuple[Any, ...] = (None, "", "none", "no", [], {})


def by_name(*groups: Iterable[Option]) -> dict[str, Option]:
    """Options by name; of two with a name the later one counts."""
    return {option.name: option for group in groups for option in group}
