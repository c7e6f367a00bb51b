"""Self-play preference optimisation with certain labels."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class SPPOHardLoss(PairLoss):
    """Squared distances of log-ratios from half a win and half a loss (arXiv 2405.00675, Eq. 4.7).

    ``(s_w - 1 / (2 beta)) ** 2 + (s_l + 1 / (2 beta)) ** 2`` of the summed log-ratios ``s``,
    where the chosen response wins with certainty. The paper's ``eta`` is ``1 / beta``, 1000.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.001, weighted: bool = False) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Sum of two squares, ``[B]``."""
        target = 0.5 / self.beta
        return (chosen - target).square() + (rejected + target).square()
