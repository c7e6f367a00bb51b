"""Losses of a few selected tokens of each response."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.simpo_loss import SimPOLoss


class SelectedLoss(SimPOLoss):
    """SimPO of the mean log-probs of selected tokens."""

    length_normalised = False

    @abstractmethod
    def selected(self, context: LossContext, role: str) -> Tensor:
        """The tokens of a role that take part, at least one of each response, ``[B, T]`` bool."""

    def factors(self, context: LossContext, role: str) -> Tensor:
        """One by the number of selected tokens at those, 0 elsewhere, ``[B, T]``."""
        results = context[role]
        chosen = self.selected(context, role) & results.mask
        return chosen.to(results["policy.logps"]) / chosen.sum(-1, keepdim=True)
