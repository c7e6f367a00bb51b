"""Noise contrastive alignment."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class NCAPairLoss(PairLoss):
    """Noise contrastive alignment of a pair (pairwise NCA, arXiv 2402.05369).

    ``-log sigmoid(r_w) - log sigmoid(-r_w) / 2 - log sigmoid(-r_l) / 2`` of the rewards ``r``,
    which are ``beta`` times log-ratios: it holds the likelihood of the chosen response up, too.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.01, weighted: bool = False) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Chosen against noise, and both as noise, ``[B]``."""
        chosen, rejected = self.beta * chosen, self.beta * rejected
        return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2
