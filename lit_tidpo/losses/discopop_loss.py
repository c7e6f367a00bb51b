"""The loss that a language model discovered."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class DiscoPOPLoss(PairLoss):
    """Log-ratio modulated loss (DiscoPOP, arXiv 2406.08414, Eq. 5).

    ``(1 - g) (-log sigmoid(x)) + g exp(-x)`` with ``x = beta m``, the margin ``m`` of
    log-ratios, and ``g = sigmoid(x / tau)``.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        tau: Temperature of the blend ``g``, above 0.
        divergence: What keeps the policy near the reference, as in ``dpo``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self,
        beta: Scalar = 0.05,
        tau: Scalar = 0.05,
        divergence: Divergence | None = None,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        check_positive("tau", tau)
        self.beta = beta
        self.tau = tau
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Blend of logistic and exponential loss, ``[B]``."""
        logit = self.beta * (chosen - rejected)
        blend = (logit / self.tau).sigmoid()
        return -logsigmoid(logit) * (1 - blend) + (-logit).exp() * blend
