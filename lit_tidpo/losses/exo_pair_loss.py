"""Efficient exact optimisation."""

from __future__ import annotations

from math import log

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_tidpo.errors import InputError, check_positive, numbers_of
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class EXOPairLoss(PairLoss):
    """Reverse KL of the policy's preference and the smoothed label (arXiv 2402.00856, Eq. 16).

    ``q_w log(q_w / (1 - e)) + q_l log(q_l / e)`` with ``q_w = sigmoid(beta m)``, ``q_l = 1 -
    q_w`` and the margin ``m`` of log-ratios.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        label_smoothing: Probability ``e`` that a label is wrong, above 0, less than 1.
        divergence: What keeps the policy near the reference, as in ``dpo``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self,
        beta: Scalar = 0.1,
        label_smoothing: Scalar = 0.001,
        divergence: Divergence | None = None,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        if not all(0 < number < 1 for number in numbers_of(label_smoothing)):
            raise InputError(
                f"label_smoothing={label_smoothing}: expected a number above 0 and less than 1, as "
                "the divergence from a certain label is infinite"
            )
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``KL(q || label)``, ``[B]``."""
        logit = self.beta * (chosen - rejected)
        right = logsigmoid(logit) - log(1 - self.label_smoothing)
        wrong = logsigmoid(-logit) - log(self.label_smoothing)
        return logit.sigmoid() * right + (-logit).sigmoid() * wrong
