"""The tokens of which a model is less sure than on average."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class ConfidenceImportance(ImportanceEstimator):
    """1 for tokens less likely than the mean of their response, else 0 (ConfPO: arXiv 2506.08712).

    The mean is that of the probabilities, as in its authors' code.

    Args:
        model: Whose probabilities: the current ``policy``, the frozen ``reference``, or a further
            model.
    """

    def __init__(self, model: str = "policy") -> None:
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of the chosen model."""
        return frozenset({f"{self.model}.logps"})

    def scores(self, results: Results) -> Tensor:
        """``p_t < mean p``, ``[N, T]``."""
        likely: Tensor = results[f"{self.model}.logps"].detach().exp()
        mean = sequence_sum(likely, results.mask) / results.mask.sum(-1)
        return (likely < mean.unsqueeze(-1)).to(likely)
