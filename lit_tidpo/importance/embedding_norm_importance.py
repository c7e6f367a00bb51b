"""Scores in units of the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.importance.base import CombinedImportance, ImportanceEstimator, checked_scores
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.structures import Results


class EmbeddingNormImportance(CombinedImportance):
    """Scores times the L2 norm of each token's embedding.

    Models that normalise their input answer to its direction alone, so gradients shrink as
    embeddings grow: this takes it out of gradient norms.

    Args:
        estimator: Scores the tokens; gradient attribution by default.
        model: Whose embeddings: ``policy``, ``reference``, or a further model's name.
    """

    def __init__(self, estimator: ImportanceEstimator | None = None, model: str = "policy") -> None:
        self.estimator = GradientImportance() if estimator is None else estimator
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """What the estimator needs, and the embeddings."""
        return super().needs | {f"{self.model}.embeddings"}

    def scores(self, results: Results) -> Tensor:
        """``I_t ||e_t||``, ``[N, T]``."""
        embeddings = results[f"{self.model}.embeddings"].detach().float()
        norms: Tensor = torch.linalg.vector_norm(embeddings, dim=-1)
        return checked_scores(self.estimator, results) * norms
