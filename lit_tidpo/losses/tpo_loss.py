"""Triple preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive, check_share
from lit_tidpo.functional.losses import dpo_loss, sequence_mean, sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext, Unit
from lit_tidpo.schedules import Scalar


class TPOLoss(LossComponent):
    """A gold response to imitate, and two to be told apart (TPO, arXiv 2405.16681).

    ``-log sigmoid(beta (l_2 - l_3) - margin) - alpha p_1`` of the log-probs ``l`` of the second and
    the last response, summed or, in TPO-L, averaged, and the mean log-prob ``p_1`` of the first. Of
    two responses the first is both gold and preferred; a single one is imitated.

    Args:
        beta: Scale of the log-probs, above 0.
        alpha: Weight of the gold response's negative log-likelihood, 0 or more.
        length_normalised: Average log-probs over the tokens of a response (TPO-L).
        margin: Target margin, 0 or more; 0.5 in TPO-L.
        label_smoothing: Probability that the order of the two is wrong, at most 1.
        weighted: Weigh tokens by their importance.
    """

    unit: Unit = "group"

    def __init__(
        self,
        beta: Scalar = 0.01,
        alpha: Scalar = 1.0,
        length_normalised: bool = False,
        margin: Scalar = 0.0,
        label_smoothing: Scalar = 0.0,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        check_not_negative("alpha", alpha)
        check_not_negative("margin", margin)
        check_share("label_smoothing", label_smoothing)
        self.beta = beta
        self.alpha = alpha
        self.length_normalised = length_normalised
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.weighted = weighted

    @property
    def needs(self) -> frozenset[str]:
        """No reference; the weights where they count."""
        return frozenset({"weights"} if self.weighted else set())

    def loss(self, context: LossContext) -> Tensor:
        """Contrast and negative log-likelihood of each prompt, ``[B]``."""
        rows = context.responses
        weights = rows["weights"] if self.weighted else None
        arguments = (rows["policy.logps"], rows.mask, weights)
        reduce = sequence_mean if self.length_normalised else sequence_sum
        scores, present = rows.batch.by_prompt(reduce(*arguments))
        gold = rows.batch.by_prompt(sequence_mean(*arguments))[0][:, 0]
        last = present.sum(-1, keepdim=True) - 1
        better, worse = (scores.gather(-1, place)[:, 0] for place in ((last - 1).clamp(0, 1), last))
        margin = self.beta * (better - worse) - self.margin
        contrast = dpo_loss(margin, 1.0, self.label_smoothing)
        return torch.where(last[:, 0] > 0, contrast, 0.0) - self.alpha * gold
