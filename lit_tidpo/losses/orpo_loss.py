"""Odds ratio preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative
from lit_tidpo.functional.losses import dpo_loss, log_odds
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class ORPOLoss(PairLoss):
    """Likelihood of the chosen response and odds ratio of both (arXiv 2403.07691, Eq. 6-7).

    ``-p_w - alpha log sigmoid(log(odds_w / odds_l))`` with ``odds = P / (1 - P)`` of ``P =
    exp(p)``, the responses' mean log-probs ``p``.

    Args:
        alpha: Weight of the odds ratio, the paper's ``lambda``, 0 or more.
        weighted: Weigh tokens by their importance.
    """

    reference_free = True
    length_normalised = True

    def __init__(self, alpha: Scalar = 0.1, weighted: bool = False) -> None:
        check_not_negative("alpha", alpha)
        self.alpha = alpha
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Negative log-likelihood and odds ratio, ``[B]``."""
        return -chosen + self.alpha * dpo_loss(log_odds(chosen) - log_odds(rejected), 1.0)
