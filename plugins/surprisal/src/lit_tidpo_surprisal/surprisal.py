"""Surprisal of each token under the reference."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class ClippedSurprisalImportance(ImportanceEstimator):
    """What surprises the reference counts: ``min(-log ref(y_t | x, y_<t), clip) ** power``.

    Args:
        power: Exponent, above 0: below 1 flattens the scores, above 1 sharpens them.
        clip: Largest surprisal that counts, in nats, above 0; None sets no limit.

    Raises:
        InputError: If an argument is out of range.
    """

    needs = frozenset({"reference.logps"})

    def __init__(self, power: float = 1.0, clip: float | None = None) -> None:
        if power <= 0:
            raise InputError(f"power={power}: expected more than 0")
        if clip is not None and clip <= 0:
            raise InputError(f"clip={clip}: expected more than 0 nats, or null for no limit")
        self.power = power
        self.clip = clip

    def scores(self, results: Results) -> Tensor:
        """Surprisal of the response tokens, zero off the response, ``[N, T]``."""
        # A log-prob that rounds to a little more than 0 must not become a negative score.
        surprisal: Tensor = (-results["reference.logps"]).clamp(min=0, max=self.clip)
        return surprisal.pow(self.power)
