"""Short names of the importance estimators: every attribute is a plugin's class.

``lit_tidpo.importance.gradient`` is what ``--model.importance gradient`` selects. Plugins are found
through the entry-point group of the same name and imported when their name is first used.
"""

from __future__ import annotations

from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.plugins.registry import IMPORTANCE, short_name_class


def __getattr__(name: str) -> type[ImportanceEstimator]:
    return short_name_class(IMPORTANCE, name, ImportanceEstimator)
