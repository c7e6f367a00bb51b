"""Earlier tokens count for more."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class PositionDecayImportance(ImportanceEstimator):
    """``gamma ** t`` at the response's token ``t``, from 0 (D2PO: arXiv 2502.14340).

    D2PO takes the weights as they are: ``model.weight_scale: none``.

    Args:
        gamma: Above 0: below 1 favours early tokens, above 1 late ones.
    """

    def __init__(self, gamma: float = 0.98) -> None:
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma={gamma}: expected a finite number above 0")
        self.gamma = gamma

    def scores(self, results: Results) -> Tensor:
        """``gamma ** t``, zero off the response, ``[N, T]``."""
        place = (results.mask.cumsum(-1) - 1).clamp(min=0)
        return (self.gamma ** place.float()).masked_fill(~results.mask, 0.0)
