"""Importance estimators: what they implement, the built-in ones, and all by their short names.

``lit_tidpo.importance.gradient`` is what ``--model.importance gradient`` selects: every attribute
that is no module is a plugin's class, found through the entry-point group of the same name and
imported when its name is first used.
"""

from __future__ import annotations

from lit_tidpo.plugins.registry import IMPORTANCE, short_name_class


def __getattr__(name: str) -> object:
    from lit_tidpo.importance.base import ImportanceEstimator

    return short_name_class(IMPORTANCE, name, ImportanceEstimator)
