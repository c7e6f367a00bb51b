"""The hinge loss of SLiC on log-ratios."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError, check_positive
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class HingeLoss(PairLoss):
    """Hinge on the margin of log-ratios (SLiC, arXiv 2305.10425, in the form of arXiv 2309.06657).

    ``max(0, 1 - beta m)``: pairs that are far enough apart train nothing. The default ``beta`` is
    the ``gamma`` of arXiv 2309.06657; SLiC itself has no reference, ``reference_free`` and 1.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        reference_free: Take log-probs of the policy in the place of log-ratios.
        divergence: What keeps the policy near the reference, as in ``dpo``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self,
        beta: Scalar = 0.05,
        divergence: Divergence | None = None,
        reference_free: bool = False,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        if reference_free and divergence is not None:
            raise InputError(
                "reference_free and a divergence exclude each other: a divergence is from the "
                "reference; leave one out"
            )
        self.beta = beta
        self.divergence = divergence
        self.reference_free = reference_free
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``max(0, 1 - beta m)``, ``[B]``."""
        return (1 - self.beta * (chosen - rejected)).relu()
