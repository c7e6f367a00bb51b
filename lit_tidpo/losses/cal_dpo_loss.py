"""Calibrated DPO."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class CalDPOLoss(PairLoss):
    """DPO whose log-ratios are held at the scale of rewards (arXiv 2412.14516).

    ``-log sigmoid(m) + c (s_w - 1 / (2 beta)) ** 2 + c (s_l + 1 / (2 beta)) ** 2`` of the
    summed log-ratios ``s`` and their margin ``m``; ``c`` is one half in the authors'
    code, ``beta`` 0.002 in its recipe.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        calibration: Weight ``c`` of the squares, 0 or more.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self, beta: Scalar = 0.002, calibration: Scalar = 0.5, weighted: bool = False
    ) -> None:
        check_positive("beta", beta)
        check_not_negative("calibration", calibration)
        self.beta = beta
        self.calibration = calibration
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Contrast and calibration, ``[B]``."""
        target = 1 / (2 * self.beta)
        squares = (chosen - target).square() + (rejected + target).square()
        return dpo_loss(chosen - rejected, 1.0) + self.calibration * squares
