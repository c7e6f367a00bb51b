"""What there is to know of each plugin without running it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.plugins.component import Component
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES, distribution, examined

_SOURCE = re.compile(r"(?:arXiv \d{4}\.\d{4,5}|[A-Z]\w+ et al\.,)[^();:]*")


def catalogue() -> Iterator[dict[str, Any]]:
    """What is known of each plugin, by its name.

    Yields:
        ``group``, ``name``, ``class``, ``distribution``, ``version``, ``state``; the ``source``
        that the first paragraph of its docstring gives, or None; its ``needs`` by its defaults, or
        None where arguments alone tell. Of an estimator the relative ``cost`` and what it
        ``looks_at``, of a loss its ``unit`` and whether it is ``weighted``. Of a broken plugin all
        of these are None.
    """
    bases: dict[str, type[Component]] = {IMPORTANCE: ImportanceEstimator, LOSSES: LossComponent}
    for group, base in bases.items():
        for entry, component, state in examined(group, base):
            owner, version = distribution(entry).split()
            specimen = None if component is None else _specimen(component)
            yield {
                "group": group,
                "name": entry.name,
                "class": entry.value,
                "distribution": owner,
                "version": version,
                "state": state,
                "source": None if component is None else source_of(component),
                **(_of_estimator(specimen) if group == IMPORTANCE else _of_loss(specimen)),
            }


def source_of(component: type) -> str | None:
    """Where it is from, such as ``arXiv 2305.18290, Eq. 7``, by its docstring's first paragraph."""
    paragraph = " ".join(inspect.cleandoc(component.__doc__ or "").partition("\n\n")[0].split())
    found = _SOURCE.search(paragraph)
    return found and found[0].strip(" ,.")


def _specimen(component: Any) -> Any:
    """An instance by its defaults; of a class that has not all one without any argument."""
    with suppress(Exception):  # whatever a stranger's constructor raises
        return component()
    return component.__new__(component)


def _of_estimator(specimen: Any) -> dict[str, Any]:
    needs = _needs(specimen)
    return {
        "needs": needs,
        "cost": None if needs is None else specimen.cost,
        "looks_at": None if needs is None else specimen.looks_at,
    }


def _of_loss(specimen: Any) -> dict[str, Any]:
    needs = _needs(specimen)
    return {
        "needs": needs,
        "unit": None if needs is None else specimen.unit,
        "weighted": None if needs is None else "weights" in needs,
    }


def _needs(specimen: Any) -> list[str] | None:
    """Names of what it needs; None where they hang on arguments that it was not given."""
    if isinstance(specimen, CombinedImportance) and not specimen.parts:
        return None
    try:
        return sorted(specimen.needs)
    except AttributeError:
        return None
