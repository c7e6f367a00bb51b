"""Supervised finetuning on the chosen response."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.losses.pair import PairLoss


class SFTLoss(PairLoss):
    """Negative log-likelihood of the chosen response, per token.

    Args:
        weighted: Weigh tokens by their importance.
    """

    reference_free = True
    length_normalised = True

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``-p_w``, the mean log-prob of the chosen response, ``[B]``."""
        return -chosen
