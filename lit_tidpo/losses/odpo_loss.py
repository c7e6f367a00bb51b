"""DPO with an offset."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError, check_not_negative
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class ODPOLoss(DPOLoss):
    """DPO whose margin has to be the larger, the better the chosen response is (arXiv 2402.10571).

    ``-log sigmoid(beta m - alpha log(r_w - r_l))`` of the margin ``m`` of log-ratios and the
    responses' rewards ``r`` from the data (columns ``score_chosen`` and ``score_rejected``).

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        alpha: Strength of the offset, 0 or more.
        weighted: Weigh tokens by their importance.
    """

    def __init__(self, beta: Scalar = 0.1, alpha: Scalar = 1.0, weighted: bool = False) -> None:
        super().__init__(beta, weighted=weighted)
        check_not_negative("alpha", alpha)
        self.alpha = alpha

    @property
    def needs(self) -> frozenset[str]:
        """The rewards of the data, too."""
        return super().needs | {"rewards"}

    def loss(self, context: LossContext) -> Tensor:
        """``-log sigmoid(beta m - alpha log(r_w - r_l))``, ``[B]``.

        Raises:
            InputError: If a rejected response has a reward as high as the chosen one.
        """
        gap = context["chosen"]["rewards"] - context["rejected"]["rewards"]
        if bool((gap <= 0).any()):
            rows = context.responses.batch.index[gap <= 0].tolist()
            raise InputError(
                f"odpo: the pairs {rows} of the data set have a reward of the chosen response that "
                "is not above that of the rejected one: leave them out, or use dpo"
            )
        margin = self.score(context, "chosen") - self.score(context, "rejected")
        return dpo_loss(self.beta * margin - self.alpha * gap.log(), 1.0)
