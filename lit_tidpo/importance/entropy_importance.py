"""How open a model is about what comes next."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class EntropyImportance(ImportanceEstimator):
    """Entropy in nats of the distribution that predicts each token (arXiv 2506.01939).

    Tokens at which a text forks have a high one, those that follow from what stands before a low
    one, whether or not the model had guessed them.

    Args:
        model: Whose: the current ``policy``, the frozen ``reference``, or a further model.
    """

    def __init__(self, model: str = "policy") -> None:
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """Entropies of the chosen model."""
        return frozenset({f"{self.model}.entropy"})

    def scores(self, results: Results) -> Tensor:
        """Entropies, zero off the response, ``[N, T]``."""
        entropy: Tensor = results[f"{self.model}.entropy"]
        return entropy.clamp(min=0)
