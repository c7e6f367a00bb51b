"""What estimators that are made of several others have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import scale_weights
from lit_tidpo.importance.base import ImportanceEstimator, checked_scores
from lit_tidpo.structures import Results


def check_several(estimators: Sequence[ImportanceEstimator]) -> None:
    """Refuse less than two estimators.

    Raises:
        InputError: If there are.
    """
    if len(estimators) < 2:
        raise InputError(f"estimators has {len(estimators)}: expected two or more to combine")


def relative_scores(estimators: Sequence[ImportanceEstimator], results: Results) -> Tensor:
    """Scores of each estimator with mean 1 over each response, which makes them comparable.

    Args:
        estimators: The estimators.
        results: What they need.

    Returns:
        Zero off the response, ``[estimators, N, T]``.
    """
    found = [checked_scores(each, results) for each in estimators]
    return torch.stack([scale_weights(scores, results.mask) for scores in found])
