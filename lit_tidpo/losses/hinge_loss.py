"""The hinge loss of SLiC on log-ratios."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class HingeLoss(PairLoss):
    """Hinge on the margin of log-ratios (SLiC, arXiv 2305.10425, in the form of arXiv 2309.06657).

    ``max(0, 1 - beta m)``: pairs that are far enough apart train nothing.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        divergence: What keeps the policy near the reference, as in ``dpo``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self, beta: Scalar = 0.1, divergence: Divergence | None = None, weighted: bool = False
    ) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``max(0, 1 - beta m)``, ``[B]``."""
        return (1 - self.beta * (chosen - rejected)).relu()
