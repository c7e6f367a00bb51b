"""Likelihood of a ranking."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.losses import plackett_luce_loss, sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext, Unit
from lit_tidpo.schedules import Scalar


class PlackettLuceLoss(LossComponent):
    """DPO of one to many ranked responses, best first (arXiv 2305.18290, Eq. 20); of two it is DPO.

    ``-sum_k log(exp r_k / sum_{j >= k} exp r_j)`` of the rewards ``r``, ``beta`` times log-ratios.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        weighted: Weigh tokens by their importance.
    """

    unit: Unit = "group"

    def __init__(self, beta: Scalar = 0.1, weighted: bool = False) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.weighted = weighted

    @property
    def needs(self) -> frozenset[str]:
        """The reference, and the weights where they count."""
        return frozenset({"reference.logps"} | ({"weights"} if self.weighted else set()))

    def loss(self, context: LossContext) -> Tensor:
        """Negative log-likelihood of each prompt's order, ``[B]``."""
        rows = context.responses
        weights = rows["weights"] if self.weighted else None
        ratios = sequence_sum(rows.log_ratios, rows.mask, weights)
        return plackett_luce_loss(*rows.batch.by_prompt(self.beta * ratios))
