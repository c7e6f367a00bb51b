"""f-divergences that keep the policy near the reference (f-DPO, arXiv 2309.16240).

A divergence with the function ``f`` has the implicit reward ``beta f'(pi / ref)`` of a response, up
to a number that its prompt's responses share. A configuration names one by its class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_tidpo.errors import InputError
from lit_tidpo.plugins.component import Component


class Divergence(Component, ABC):
    """What stands in the place of a response's log-ratio."""

    @abstractmethod
    def score(self, log_ratio: Tensor) -> Tensor:
        """``f'(u)`` where ``log u`` is the log-ratio of a response, ``[B]`` both."""


class ReverseKL(Divergence):
    """``KL(policy || reference)``: DPO's own, whose score is the log-ratio itself."""

    def score(self, log_ratio: Tensor) -> Tensor:
        """``log u``."""
        return log_ratio


class ForwardKL(Divergence):
    """``KL(reference || policy)``."""

    def score(self, log_ratio: Tensor) -> Tensor:
        """``1 - 1 / u``."""
        return -torch.expm1(-log_ratio)


class JensenShannon(Divergence):
    """Jensen-Shannon divergence."""

    def score(self, log_ratio: Tensor) -> Tensor:
        """``log(2 u / (1 + u))``."""
        return math.log(2) + logsigmoid(log_ratio)


class AlphaDivergence(Divergence):
    """alpha-divergence, which is the reverse KL as ``alpha`` goes to 1.

    Args:
        alpha: Its order, any number but 1.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not math.isfinite(alpha) or alpha == 1:
            raise InputError(
                f"alpha={alpha}: expected a finite number other than 1, whose limit is ReverseKL"
            )
        self.alpha = alpha

    def score(self, log_ratio: Tensor) -> Tensor:
        """``(u ** (alpha - 1) - 1) / (alpha - 1)``."""
        return torch.expm1((self.alpha - 1) * log_ratio) / (self.alpha - 1)


class ChiSquaredKL(Divergence):
    """Chi-squared divergence and reverse KL together (arXiv 2407.13399, Eq. 9)."""

    def score(self, log_ratio: Tensor) -> Tensor:
        """``u + log u``."""
        return log_ratio.exp() + log_ratio
