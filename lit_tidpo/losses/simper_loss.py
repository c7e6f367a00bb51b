"""Preference optimisation by perplexity alone."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.losses.pair import PairLoss


class SimPERLoss(PairLoss):
    """Inverse perplexities, without reference and hyperparameters (arXiv 2502.00883).

    ``exp(p_l) - exp(p_w)`` of the responses' mean log-probs ``p``.

    Args:
        weighted: Weigh tokens by their importance.
    """

    reference_free = True
    length_normalised = True

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``exp(p_l) - exp(p_w)``, ``[B]``."""
        return rejected.exp() - chosen.exp()
