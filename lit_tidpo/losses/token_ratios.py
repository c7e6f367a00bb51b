"""Losses that match ratios of likelihoods token by token."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lit_tidpo.errors import check_not_negative, check_positive
from lit_tidpo.functional.losses import from_first_token, scaled_basu_loss, sequence_mean
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.schedules import Scalar
from lit_tidpo.structures import Results


class TokenRatioLoss(LossComponent):
    """Each token of the chosen against the one at its place in the rejected response.

    The mean over the places ``t`` that both responses have, counted from their first tokens, of the
    scaled Basu divergence of ``log R_t = beta (d_t(y_l) - d_t(y_w) + c_t)``, with the tokens'
    log-ratios ``d`` and a correction ``c`` for what the responses before them are worth.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        power: Power ``lambda`` of the divergence, 0 or more.
        scale: Scale ``s`` of the divergence, above 0.
    """

    def __init__(self, beta: Scalar = 0.1, power: float = 0.0, scale: float = 4.0) -> None:
        check_positive("beta", beta)
        check_not_negative("power", power)
        check_positive("scale", scale)
        self.beta = beta
        self.power = power
        self.scale = scale

    @abstractmethod
    def values(self, results: Results) -> Tensor:
        """What the response up to each token is worth, in nats, ``[B, T]``."""

    def adjusted(self, difference: Tensor, shared: Tensor) -> Tensor:
        """The correction ``c``, made of the rejected less the chosen response's values.

        Args:
            difference: ``[B, T]``.
            shared: Places that both responses have, ``[B, T]`` bool.
        """
        return difference

    def loss(self, context: LossContext) -> Tensor:
        """Mean over the places that both responses have, ``[B]``."""
        chosen, rejected = context["chosen"], context["rejected"]
        _, shared = from_first_token(chosen.log_ratios, chosen.mask)
        shared = shared & from_first_token(rejected.log_ratios, rejected.mask)[1]
        difference = _less(rejected, rejected.log_ratios, chosen, chosen.log_ratios)
        values = self.values(chosen), self.values(rejected)
        correction = self.adjusted(_less(rejected, values[1], chosen, values[0]), shared)
        log_ratio = torch.where(shared, self.beta * (difference + correction), 0.0)
        return sequence_mean(scaled_basu_loss(log_ratio, self.power, self.scale), shared)


def _less(rejected: Results, of_rejected: Tensor, chosen: Results, of_chosen: Tensor) -> Tensor:
    """Values of the rejected less those of the chosen response, place by place, ``[B, T]``."""
    first, _ = from_first_token(of_rejected, rejected.mask)
    return first - from_first_token(of_chosen, chosen.mask)[0]
