"""Every token alike."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class UniformImportance(ImportanceEstimator):
    """Every token weighs alike; this is plain DPO (arXiv 2305.18290, Eq. 7)."""

    def scores(self, results: Results) -> Tensor:
        """Ones, ``[N, T]``."""
        return torch.ones_like(results["policy.logps"])
