"""Constructor arguments as plain data, the way LightningCLI stores them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from lit_tidpo.contracts import ImportanceEstimator, LossComponent
from lit_tidpo.errors import InputError


def plain(value: Any) -> Any:
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
    if isinstance(value, (ImportanceEstimator, LossComponent)):
        return {"class_path": _path(type(value)), "init_args": _arguments(value)}
    if isinstance(value, functools.partial):
        # The command line's is partial(instantiator, class, ...).
        factory = (value.func, *value.args)[-1]
        if isinstance(factory, type):
            return {"class_path": _path(factory), "init_args": plain(value.keywords)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
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
    return {name: plain(getattr(component, name)) for name in names}
