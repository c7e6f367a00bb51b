"""Short names of the loss components: every attribute is a plugin's class.

``lit_tidpo.losses.triplet`` is what the class path ``triplet`` selects. Plugins are found through
the entry-point group of the same name and imported when their name is first used.
"""

from __future__ import annotations

from lit_tidpo.contracts import LossComponent
from lit_tidpo.plugins.registry import LOSSES, short_name_class


def __getattr__(name: str) -> type[LossComponent]:
    return short_name_class(LOSSES, name, LossComponent)
