"""Scores mixed with a prior."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_tidpo.errors import check_choice, check_share
from lit_tidpo.functional.importance import hybrid_weights, normalize_scores
from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.priors import GaussianPrior, Prior
from lit_tidpo.schedules import Scalar
from lit_tidpo.structures import Results

Positions = Literal["response", "all"]


class HybridImportance(CombinedImportance):
    """Scores mixed with a prior (arXiv 2505.19653, Eq. 8): ``W = lambda I_norm + (1 - lambda) P``.

    Args:
        estimator: Scores the tokens, ``I``; gradient attribution by default (Eq. 5-6).
        prior: ``P``; the Gaussian over the positions by default (Eq. 7).
        mix: ``lambda``, the share of the scores, 0 to 1.
        positions: Normalise over, and centre the prior on, the ``response`` alone, or ``all``
            tokens of prompt and response.

    Raises:
        InputError: If ``mix`` is out of range.
    """

    def __init__(
        self,
        estimator: ImportanceEstimator | None = None,
        prior: Prior | None = None,
        mix: Scalar = 0.7,
        positions: Positions = "response",
    ) -> None:
        check_share("mix", mix)
        check_choice("positions", positions, Positions)
        self.estimator = GradientImportance() if estimator is None else estimator
        self.prior = GaussianPrior() if prior is None else prior
        self.mix = mix
        self.positions = positions

    @property
    def spans_prompt(self) -> bool:  # type: ignore[override]
        """Whether prompt tokens are scored."""
        return self.positions == "all" or super().spans_prompt

    def scores(self, results: Results) -> Tensor:
        """The mixture, ``[N, T]``."""
        mask = results.mask if self.positions == "response" else results.batch.attention_mask
        scores = checked_scores(self.estimator, results, mask)
        prior = self.prior.prior(scores, mask)
        return hybrid_weights(normalize_scores(scores, mask), prior, self.mix)
