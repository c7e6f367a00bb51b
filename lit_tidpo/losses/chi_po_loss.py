"""Chi-squared preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.divergences import ChiSquaredKL
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class ChiPOLoss(PairLoss):
    """DPO with the chi-squared divergence, whose reward cannot run away (arXiv 2407.13399, Eq. 9).

    ``-log sigmoid(clip(beta (phi(s_w) - phi(s_l))))`` with ``phi(s) = exp(s) + s`` of summed
    log-ratios and a clip at ``-2 R`` and ``2 R``. The defaults were not checked against the paper.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        max_reward: ``R``: what true rewards lie below, above 0.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self, beta: Scalar = 0.05, max_reward: Scalar = 1.0, weighted: bool = False
    ) -> None:
        check_positive("beta", beta)
        check_positive("max_reward", max_reward)
        self.beta = beta
        self.max_reward = max_reward
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Logistic loss of the clipped margin, ``[B]``."""
        limit = 2 * self.max_reward
        score = ChiSquaredKL().score
        margin = self.beta * (score(chosen) - score(rejected))
        return dpo_loss(margin.clamp(-limit, limit), 1.0)
