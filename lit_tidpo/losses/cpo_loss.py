"""Contrastive preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive, check_share
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class CPOLoss(PairLoss):
    """DPO with a uniform reference, and the chosen response's likelihood (arXiv 2401.08417).

    ``-log sigmoid(beta (l_w - l_l)) - alpha p_w`` of the summed log-probs ``l`` and the mean
    log-prob ``p_w`` of the chosen response.

    Args:
        beta: Scale of the log-probs, above 0.
        alpha: Weight of the negative log-likelihood, 0 or more.
        label_smoothing: Probability that a label is wrong, at most 1.
        weighted: Weigh tokens by their importance.
    """

    reference_free = True

    def __init__(
        self,
        beta: Scalar = 0.1,
        alpha: Scalar = 1.0,
        label_smoothing: Scalar = 0.0,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        check_not_negative("alpha", alpha)
        check_share("label_smoothing", label_smoothing)
        self.beta = beta
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.weighted = weighted

    def loss(self, context: LossContext) -> Tensor:
        """Contrast and negative log-likelihood, ``[B]``."""
        return super().loss(context) + self.alpha * self.nll(context)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``-log sigmoid(beta (l_w - l_l))``, ``[B]``."""
        return dpo_loss(chosen - rejected, self.beta, self.label_smoothing)
