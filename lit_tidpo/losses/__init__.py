"""Losses: what they implement, the built-in ones, and all by their short names.

``lit_tidpo.losses.triplet`` is what the class path ``triplet`` selects: every attribute that is no
module is a plugin's class, found through the entry-point group of the same name and imported when
its name is first used.
"""

from __future__ import annotations

from lit_tidpo.plugins.registry import LOSSES, short_name_class


def __getattr__(name: str) -> object:
    from lit_tidpo.losses.base import LossComponent

    return short_name_class(LOSSES, name, LossComponent)
