"""Plugins found through entry points: the one route for built-in and third-party components.

A distribution registers a class under ``lit_tidpo.importance`` or ``lit_tidpo.losses``::

    [project.entry-points."lit_tidpo.importance"]
    novelty = "my_package:NoveltyImportance"

Nothing is imported until a plugin is used.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import types
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from importlib.util import find_spec
from inspect import isabstract
from pathlib import Path
from typing import TypeVar

from lit_tidpo.errors import PluginError

IMPORTANCE = "lit_tidpo.importance"
LOSSES = "lit_tidpo.losses"

ComponentT = TypeVar("ComponentT")


def registered(group: str) -> list[EntryPoint]:
    """Entry points of a group, by name, then by distribution."""
    found = _installed(group)
    count = Counter(entry.name for entry in found)
    # Its distribution is read from a file, for each look at each of many plugins.
    return sorted(
        found, key=lambda entry: (entry.name, distribution(entry) if count[entry.name] > 1 else "")
    )


def _installed(group: str) -> EntryPoints:
    """Entry points of a group, kept until an installation changes a folder of distributions.

    A command asks about 60 times, and reading all distributions takes 10 ms or more.
    """
    places = (Path(place) for place in sys.path)
    times = tuple((str(each), each.stat().st_mtime_ns) for each in places if each.exists())
    return _read(group, times)


@lru_cache
def _read(group: str, times: tuple[tuple[str, int], ...]) -> EntryPoints:
    return entry_points(group=group)


def distribution(entry: EntryPoint) -> str:
    """Name and version of the distribution that registered an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown unknown"


def load(group: str, name: str, base: type[ComponentT]) -> type[ComponentT]:
    """Import the class of a plugin and check it.

    Args:
        group: :data:`IMPORTANCE` or :data:`LOSSES`.
        name: Short name of the plugin.
        base: Class that it must derive from.

    Returns:
        The plugin's class.

    Raises:
        PluginError: If the name is unknown or registered twice, or its class cannot be imported or
            does not derive from ``base``, or its name is taken. The message names the plugin and
            its distribution.
    """
    check_name(group, name)
    entries = [entry for entry in registered(group) if entry.name == name]
    if not entries:
        known = sorted({entry.name for entry in registered(group)})
        raise PluginError(f"no plugin {name!r} in {group}; known: {', '.join(known)}")
    if len(entries) > 1:
        owners = " and ".join(distribution(entry) for entry in entries)
        raise PluginError(
            f"plugin {name!r} in {group} is registered by {owners}: uninstall one, "
            "or name the class by its full path"
        )
    return _load_entry(entries[0], base)


def check_name(group: str, name: str) -> None:
    """Refuse a plugin that a module of its group would hide.

    A module is an attribute of its package as soon as it is imported.

    Args:
        group: :data:`IMPORTANCE` or :data:`LOSSES`.
        name: Short name of the plugin.

    Raises:
        PluginError: If a plugin has the name of a module.
    """
    package = importlib.import_module(group)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for entry in registered(group):
        if entry.name == name and name in modules:
            raise PluginError(
                f"{_label(entry)} has the name of the module {group}.{name}, which hides it: "
                f"choose another name; until then write {entry.value.replace(':', '.')}"
            )


def _label(entry: EntryPoint) -> str:
    return f"plugin {entry.name!r} ({entry.value}) of {distribution(entry)}"


def _load_entry(entry: EntryPoint, base: type[ComponentT]) -> type[ComponentT]:
    label = _label(entry)
    try:
        component = entry.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises on import
        raise PluginError(
            f"{label} could not be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(component, type) and issubclass(component, base)):
        raise PluginError(f"{label} is {component!r}; expected a subclass of {base.__name__}")
    if isabstract(component):
        missing = sorted(getattr(component, "__abstractmethods__", ()))
        raise PluginError(f"{label} lacks {missing}: expected a class that can be used")
    if not entry.name.isidentifier():
        raise PluginError(
            f"{label} cannot be typed as a class: expected a name of letters, digits and "
            f"underscores; until then write {entry.value.replace(':', '.')}"
        )
    return component


def short_name_class(group: str, name: str, base: type[ComponentT]) -> type[ComponentT]:
    """Make the class that stands for a plugin under its short name.

    jsonargparse finds classes by ``__name__`` and stores them by ``__module__``. So the module
    whose name is the group gets a subclass called like the plugin: ``gradient`` can be typed, and
    configurations store ``lit_tidpo.importance.gradient``.

    Args:
        group: Name of the group and of the module that holds the short names.
        name: Short name of the plugin.
        base: Class that the plugin must derive from.

    Returns:
        A subclass of the plugin's class, kept as an attribute of the module. A class that already
        is called like the plugin stands for itself: two of one name would be ambiguous.

    Raises:
        AttributeError: If there is no such plugin, as for any missing attribute of a module.
        PluginError: If the plugin cannot be used.
    """
    if name not in _installed(group).names:
        raise AttributeError(f"module {group!r} has no plugin {name!r}")
    alias = component = load(group, name, base)
    if component.__name__ != name:
        members = {"__module__": group, "__doc__": component.__doc__}
        alias = types.new_class(name, (component,), exec_body=lambda body: body.update(members))
    setattr(sys.modules[group], name, alias)
    return alias


def is_built_in(group: str, entry: EntryPoint) -> bool:
    """Whether a plugin is one of this package that is there; its module is not imported.

    Args:
        group: :data:`IMPORTANCE` or :data:`LOSSES`.
        entry: An entry point of the group.
    """
    module, _, name = entry.value.partition(":")
    if (
        not module.startswith(f"{group}.")
        or [e.name for e in registered(group)].count(entry.name) > 1
    ):
        return False
    spec = find_spec(module)
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return f"\nclass {name}(" in source


def examined(
    group: str, base: type[ComponentT]
) -> Iterator[tuple[EntryPoint, type[ComponentT] | None, str]]:
    """Try every plugin of a group.

    Args:
        group: :data:`IMPORTANCE` or :data:`LOSSES`.
        base: Class that a plugin must derive from.

    Yields:
        The entry point, its class, or None if it cannot be used, and ``ok`` or what is wrong.
    """
    for entry in registered(group):
        try:
            yield entry, load(group, entry.name, base), "ok"
        except PluginError as error:
            yield entry, None, str(error)
