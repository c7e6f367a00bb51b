"""DPO with token weights and TDPO's KL term."""

from __future__ import annotations

from math import isfinite
from typing import Literal

from torch import Tensor

from lit_tidpo.errors import InputError, check_choice, check_positive
from lit_tidpo.functional.losses import dpo_loss, sequence_sum, tdpo_margin
from lit_tidpo.losses.base import LossComponent, LossContext

KLTerm = Literal["tdpo2", "tdpo1", "none"]


class WeightedDPOLoss(LossComponent):
    """Token-weighted DPO with TDPO's KL term (TI-DPO, Eq. 9-12; TDPO, arXiv 2404.11999).

    Args:
        alpha: Weight of the KL term of ``tdpo2``; 0 leaves the term out.
        kl_term: ``tdpo2`` stops the gradient of the chosen response's KL; ``tdpo1`` takes the
            difference of both as it is and has no ``alpha``; ``none`` leaves the term out.
        beta: Inverse temperature of the implicit reward, per nat, above 0.
    """

    def __init__(self, alpha: float = 0.5, kl_term: KLTerm = "tdpo2", beta: float = 0.1) -> None:
        check_choice("kl_term", kl_term, KLTerm)
        check_positive("beta", beta)
        if not (alpha >= 0 and isfinite(alpha)):
            raise InputError(f"alpha={alpha}: expected a finite number of 0 or more")
        if kl_term != "tdpo2" and alpha != 0.5:
            raise InputError(f"alpha={alpha} has no effect with kl_term={kl_term!r}: use 'tdpo2'")
        self.alpha = alpha
        self.kl_term = kl_term
        self.beta = beta

    @property
    def _uses_kl(self) -> bool:
        return self.kl_term == "tdpo1" or (self.kl_term == "tdpo2" and self.alpha > 0)

    @property
    def needs(self) -> frozenset[str]:
        """Weights and the reference, and the KL only where it counts."""
        kl = {"reference.kl"} if self._uses_kl else set()
        return frozenset({"reference.logps", "weights"} | kl)

    def loss(self, context: LossContext) -> Tensor:
        """``-log sigmoid(beta delta)`` with the weighted margin ``delta``, ``[B]``."""
        chosen, rejected = context["chosen"], context["rejected"]
        margin = sequence_sum(chosen.log_ratios, chosen.mask, chosen["weights"]) - sequence_sum(
            rejected.log_ratios, rejected.mask, rejected["weights"]
        )
        if self._uses_kl:
            margin = tdpo_margin(
                margin,
                sequence_sum(chosen["reference.kl"], chosen.mask),
                sequence_sum(rejected["reference.kl"], rejected.mask),
                self.alpha,
                variant=1 if self.kl_term == "tdpo1" else 2,
            )
        return dpo_loss(margin, self.beta)
