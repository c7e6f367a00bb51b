"""Every token alike."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.structures import Forward


class UniformImportance(ImportanceEstimator):
    """Every token weighs alike; with ``weighting.mix: 1`` this is plain (T)DPO."""

    def scores(self, forward: Forward) -> Tensor:
        """Ones, ``[N, T]``."""
        return forward.policy.logps.new_ones(forward.batch.input_ids.shape)
