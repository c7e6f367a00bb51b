"""How much a token surprises a model."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class SurprisalImportance(ImportanceEstimator):
    """Surprisal of each token in nats: ``-log p(y_t | x, y_<t)``.

    Args:
        model: Whose: the frozen ``reference``, the current ``policy``, or a further model.
    """

    def __init__(self, model: str = "reference") -> None:
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of the chosen model."""
        return frozenset({f"{self.model}.logps"})

    def scores(self, results: Results) -> Tensor:
        """Surprisal, zero off the response, ``[N, T]``."""
        logps: Tensor = results[f"{self.model}.logps"]
        return -logps.clamp(max=0)  # one that rounds to a little more than 0 is no surprise either
