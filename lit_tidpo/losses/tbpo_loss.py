"""Token-level Bregman preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.losses.token_ratios import TokenRatioLoss
from lit_tidpo.structures import Results


class TBPOLoss(TokenRatioLoss):
    """Ratio matching of tokens, corrected by divergences (TBPO-A, arXiv 2605.12288).

    The mean over the places ``t`` that both responses have of ``(R_t + log R_t) / 4``, the scaled
    Basu divergence, with ``log R_t = beta (d_t(y_l) - d_t(y_w) + k_t(y_l) - k_t(y_w))`` of the
    tokens' log-ratios ``d`` and divergences ``k = KL(reference || policy)``. Formula and defaults
    are those of the authors' code and launch scripts; the paper itself was not at hand.
    """

    needs = frozenset({"reference.logps", "reference.kl"})

    def values(self, results: Results) -> Tensor:
        """Divergence at each token, ``[B, T]``."""
        divergence: Tensor = results["reference.kl"]
        return divergence
