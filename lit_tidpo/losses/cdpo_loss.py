"""Conservative DPO."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive, check_share
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class CDPOLoss(PairLoss):
    """DPO for labels that may be wrong (Mitchell, A note on DPO with noisy preferences, Eq. 3).

    ``-(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)`` of the margin ``m`` of log-ratios.
    The note names no default; the code of KTO's authors, HALOs, takes 0.2 for it.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        label_smoothing: Probability ``e`` that a label is wrong, at most 1.
        divergence: What keeps the policy near the reference, as in ``dpo``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self,
        beta: Scalar = 0.1,
        label_smoothing: Scalar = 0.1,
        divergence: Divergence | None = None,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        check_share("label_smoothing", label_smoothing)
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Cross-entropy with the smoothed label, ``[B]``."""
        return dpo_loss(chosen - rejected, self.beta, self.label_smoothing)
