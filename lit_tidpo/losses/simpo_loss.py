"""Simple preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive, check_share
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class SimPOLoss(PairLoss):
    """DPO of mean log-probs without a reference, with a target margin (arXiv 2405.14734, Eq. 6).

    ``-log sigmoid(beta (p_w - p_l) - margin)`` of the responses' mean log-probs ``p``.

    Args:
        beta: Scale of the mean log-probs, above 0.
        margin: Target margin, the paper's ``gamma``, 0 or more.
        label_smoothing: Probability ``e`` that a label is wrong, at most 1.
        weighted: Weigh tokens by their importance.
    """

    reference_free = True
    length_normalised = True

    def __init__(
        self,
        beta: Scalar = 2.0,
        margin: Scalar = 1.0,
        label_smoothing: Scalar = 0.0,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        check_not_negative("margin", margin)
        check_share("label_smoothing", label_smoothing)
        self.beta = beta
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``-log sigmoid(beta (p_w - p_l) - margin)``, ``[B]``."""
        return dpo_loss(self.beta * (chosen - rejected) - self.margin, 1.0, self.label_smoothing)
