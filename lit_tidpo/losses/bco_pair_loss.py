"""Binary classifier optimisation of pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class BCOPairLoss(PairLoss):
    """Each response told from zero reward (BCO, arXiv 2404.04656, without its shift).

    ``-log sigmoid(r_w) - log sigmoid(-r_l)`` of the rewards ``r``, which are ``beta`` times
    log-ratios; ``bco`` has the shift.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.01, weighted: bool = False) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Sum of two cross-entropies, ``[B]``."""
        return -logsigmoid(self.beta * chosen) - logsigmoid(-self.beta * rejected)
