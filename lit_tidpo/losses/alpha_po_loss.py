"""SimPO with a bent reward."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from lit_tidpo.errors import InputError, check_not_negative, check_positive
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class AlphaPOLoss(PairLoss):
    """SimPO whose reward is a power of the likelihood (AlphaPO, arXiv 2501.03884).

    ``-log sigmoid(beta (r_w - r_l) - margin)`` with ``r = (1 - exp(-alpha p)) / alpha`` of the
    responses' mean log-probs ``p``; as ``alpha`` goes to 0 it is SimPO. The defaults are those of
    Mistral-Instruct in Table 3 as TRL's documentation quotes them; the table was not at hand, and
    its 0.1 may be SimPO's ratio of margin and ``beta``, a margin of 0.25 then.

    Args:
        beta: Scale of the rewards, above 0.
        margin: Target margin, 0 or more.
        alpha: Bend of the reward, any number but 0.
        weighted: Weigh tokens by their importance.
    """

    reference_free = True
    length_normalised = True

    def __init__(
        self, beta: Scalar = 2.5, margin: Scalar = 0.1, alpha: float = 0.25, weighted: bool = False
    ) -> None:
        check_positive("beta", beta)
        check_not_negative("margin", margin)
        if not isfinite(alpha) or alpha == 0:
            raise InputError(
                f"alpha={alpha}: expected a finite number other than 0, whose limit is simpo"
            )
        self.beta = beta
        self.margin = margin
        self.alpha = alpha
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``-log sigmoid(beta (r_w - r_l) - margin)``, ``[B]``."""
        rewards = (-torch.expm1(-self.alpha * torch.stack([chosen, rejected]))) / self.alpha
        return dpo_loss(self.beta * (rewards[0] - rewards[1]) - self.margin, 1.0)
