"""Constructor arguments as plain data, the way LightningCLI stores them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from lit_tidpo.errors import InputError
from lit_tidpo.plugins.component import Component


def as_plain_data(value: Any) -> Any:
    """Turn a constructor argument into what a checkpoint may hold and a parser can read back.

    Dataclasses become dictionaries; components and optimizer factories made by
    ``functools.partial`` become ``class_path`` and ``init_args``.

    Args:
        value: The argument.

    Returns:
        Nested dictionaries, lists, numbers, strings and None. Other callables become None: what
        they build is no part of a trained model.

    Raises:
        InputError: If a component does not keep a constructor argument as an attribute.
    """
    if isinstance(value, Component):
        return {"class_path": _path(type(value)), "init_args": _arguments(value)}
    if isinstance(value, functools.partial):
        # The command line's is partial(instantiator, class, ...).
        factory = (value.func, *value.args)[-1]
        if isinstance(factory, type):
            return {"class_path": _path(factory), "init_args": as_plain_data(value.keywords)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_plain_data(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: as_plain_data(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain_data(entry) for entry in value]
    return None if callable(value) else value


def _path(component: type) -> str:
    return f"{component.__module__}.{component.__qualname__}"


def _arguments(component: object) -> dict[str, Any]:
    names = list(inspect.signature(type(component)).parameters)
    missing = [name for name in names if not hasattr(component, name)]
    if missing:
        raise InputError(
            f"{_path(type(component))} does not keep its arguments {missing} as attributes of "
            "the same name, so a checkpoint cannot store them: set them in __init__"
        )
    return {name: as_plain_data(getattr(component, name)) for name in names}
