"""Robust DPO."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive, check_share
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class RobustLoss(PairLoss):
    """DPO whose expectation under wrong labels is that under right ones (rDPO, arXiv 2403.00409).

    ``((1 - e) l(m) - e l(-m)) / (1 - 2 e)`` with ``l(m) = -log sigmoid(beta m)`` of the margin
    ``m`` of log-ratios.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        label_smoothing: Probability ``e`` that a label is wrong, less than one half.
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
        check_share("label_smoothing", label_smoothing, below=0.5)
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The unbiased estimate of the loss under right labels, ``[B]``."""
        margin, wrong = chosen - rejected, self.label_smoothing
        kept = (1 - wrong) * dpo_loss(margin, self.beta)
        return (kept - wrong * dpo_loss(-margin, self.beta)) / (1 - 2 * wrong)
