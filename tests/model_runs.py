"""One batch through a policy and a reference."""

from __future__ import annotations

from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel


def run(policy, batch, needs=frozenset(), reference=None, **ways):
    """What is needed of a batch; ``ways`` are those of :class:`Models`."""
    others = {} if reference is None else {"reference": FrozenModel(reference)}
    return Models(policy, others, **ways).run([(batch, frozenset(needs))])[0]
