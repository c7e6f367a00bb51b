"""How raw importance scores become token weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_tidpo.errors import InputError, NonFiniteError, check_choice
from lit_tidpo.functional.importance import (
    clip_weights,
    gaussian_prior,
    hybrid_weights,
    normalize_scores,
    scale_weights,
    softmax_prior,
    temper_scores,
)
from lit_tidpo.structures import ResponseBatch

Prior = Literal["gaussian", "softmax"]
PriorScale = Literal["distribution", "raw"]
Scale = Literal["mean", "sum", "max"]
Positions = Literal["response", "all"]


@dataclass(frozen=True)
class Weighting:
    """The hybrid rule ``W = lambda I_norm + (1 - lambda) P`` and its open choices (Eq. 7-8).

    Attributes:
        mix: ``lambda``, the share of the estimator's scores; 1 uses no prior.
        prior: ``P``: the ``gaussian`` over the positions, or a ``softmax`` of the scores instead.
        prior_scale: The Gaussian as a ``distribution`` (sum 1), or ``raw`` (peak 1).
        sigma_divisor: ``c`` in the Gaussian's ``sigma = T / c``.
        scale: What is 1 over the response: the ``mean`` of the weights (uniform weights are then
            exactly plain DPO), their ``sum`` or their ``max``.
        positions: Normalise over, and centre the prior on, the ``response`` alone, or ``all``
            tokens of prompt and response.
        temper: Power of the scores before they are normalised: below 1 draws the tokens together,
            above 1 apart.
        clip: Largest weight, in units of the mean of the row before it is cut; what is left is
            scaled again, so that the others gain. At least 1; None cuts nothing.
    """

    mix: float = 0.7
    prior: Prior = "gaussian"
    prior_scale: PriorScale = "distribution"
    sigma_divisor: float = 4.0
    scale: Scale = "mean"
    positions: Positions = "response"
    temper: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        check_choice("weighting.prior", self.prior, Prior)
        check_choice("weighting.prior_scale", self.prior_scale, PriorScale)
        check_choice("weighting.scale", self.scale, Scale)
        check_choice("weighting.positions", self.positions, Positions)
        if not 0 <= self.mix <= 1:
            raise InputError(f"weighting.mix={self.mix}: expected a number from 0 to 1")
        if not self.sigma_divisor > 0:
            raise InputError(f"weighting.sigma_divisor={self.sigma_divisor}: expected more than 0")
        if not self.temper > 0:
            raise InputError(f"weighting.temper={self.temper}: expected more than 0")
        if self.clip is not None and not self.clip >= 1:
            raise InputError(f"weighting.clip={self.clip}: expected 1 or more, or null")
        if self.prior == "softmax" and (self.prior_scale, self.sigma_divisor) != (
            "distribution",
            4.0,
        ):
            raise InputError(
                "weighting.prior_scale and weighting.sigma_divisor have no effect with "
                "weighting.prior='softmax': leave them out"
            )

    def weights(self, scores: Tensor, batch: ResponseBatch) -> Tensor:
        """Turn scores into the weights that the losses use.

        Args:
            scores: An estimator's scores, ``[N, T]``.
            batch: The rows that were scored.

        Returns:
            Detached weights, zero off the response, ``[N, T]``.

        Raises:
            InputError: If the scores have another shape, or a supervised score is negative.
            NonFiniteError: If a supervised score is NaN or infinite.
        """
        mask = batch.response_mask if self.positions == "response" else batch.attention_mask
        scores = _checked(scores.detach(), mask)
        if self.temper != 1:
            scores = temper_scores(scores, mask, self.temper)
        shares = normalize_scores(scores, mask)
        if self.prior == "softmax":
            prior = softmax_prior(scores, mask)
        else:
            normalized = self.prior_scale == "distribution"
            prior = gaussian_prior(mask, self.sigma_divisor, normalized).to(scores)
        mixed = hybrid_weights(shares, prior, self.mix)
        if self.clip is not None:
            mixed = clip_weights(mixed, batch.response_mask, self.clip)
        return scale_weights(mixed, batch.response_mask, self.scale)


def _checked(scores: Tensor, mask: Tensor) -> Tensor:
    if scores.shape != mask.shape:
        raise InputError(
            f"importance scores have the shape {tuple(scores.shape)}; expected "
            f"{tuple(mask.shape)}, one score for each token of the batch"
        )
    supervised = scores[mask]
    if not bool(torch.isfinite(supervised).all()):
        raise NonFiniteError("importance scores are NaN or infinite at supervised tokens")
    if bool((supervised < 0).any()):
        raise InputError(
            f"importance scores must not be negative; the lowest is {supervised.min().item()}"
        )
    return scores.float()
