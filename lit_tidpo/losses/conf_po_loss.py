"""Preference optimisation of the tokens that the policy is not sure of."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.functional.losses import sequence_mean
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.selected import SelectedLoss
from lit_tidpo.schedules import Scalar


class ConfPOLoss(SelectedLoss):
    """SimPO of the tokens that are less likely than the response's mean (ConfPO, arXiv 2506.08712).

    ``-log sigmoid(beta (p_w - p_l) - margin)`` of the mean log-probs ``p`` of the tokens whose
    probability under the policy is at most the mean of those of their response. The defaults are
    those of the authors' script for Mistral-7B.

    Args:
        beta: Scale of the mean log-probs, above 0.
        margin: Target margin, 0 or more.
        weighted: Weigh tokens by their importance, too.
    """

    def __init__(self, beta: Scalar = 1.5, margin: Scalar = 1.6, weighted: bool = False) -> None:
        super().__init__(beta, margin, weighted=weighted)

    def selected(self, context: LossContext, role: str) -> Tensor:
        """Tokens of low confidence, ``[B, T]``."""
        results = context[role]
        confidence: Tensor = results["policy.logps"].detach().exp()
        mean = sequence_mean(confidence, results.mask).unsqueeze(-1)
        lowest = confidence.masked_fill(~results.mask, torch.inf).amin(-1, keepdim=True)
        return confidence <= torch.maximum(mean, lowest)  # however the mean was rounded
