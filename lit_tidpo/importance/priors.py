"""Priors over the tokens of a response: what is assumed before anything is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.importance import gaussian_prior, softmax_prior
from lit_tidpo.plugins.component import Component


class Prior(Component, ABC):
    """``P`` of the hybrid rule (Eq. 8). A configuration names it by its class."""

    @abstractmethod
    def prior(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Weigh the tokens.

        Args:
            scores: Scores that the prior is mixed with, ``[N, T]``.
            mask: Tokens that take part, ``[N, T]`` bool.

        Returns:
            Not negative, zero off the mask, ``[N, T]``.
        """


class GaussianPrior(Prior):
    """Gaussian over the positions, centred on their middle (Eq. 7).

    Args:
        sigma_divisor: ``c`` in ``sigma = T / c``; 4 in the paper, 8 in its authors' code.
        raw: Let the peak be 1, rather than the sum.
    """

    def __init__(self, sigma_divisor: float = 4.0, raw: bool = False) -> None:
        check_positive("sigma_divisor", sigma_divisor)
        self.sigma_divisor = sigma_divisor
        self.raw = raw

    def prior(self, scores: Tensor, mask: Tensor) -> Tensor:
        """``exp(-((t - mu) / sigma) ** 2 / 2)``, ``[N, T]``."""
        return gaussian_prior(mask, self.sigma_divisor, not self.raw).to(scores)


class UniformPrior(Prior):
    """All tokens alike; a schedule of ``mix`` leads from plain DPO's weights to the scores'."""

    def prior(self, scores: Tensor, mask: Tensor) -> Tensor:
        """``1 / T`` at each of the ``T`` tokens that take part, ``[N, T]``."""
        return (mask / mask.sum(-1, keepdim=True).clamp(min=1)).to(scores)


class SoftmaxPrior(Prior):
    """Softmax of the scores in the Gaussian's place (the paper's ablation, Table 2)."""

    def prior(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Softmax of the scores in units of their mean, ``[N, T]``."""
        return softmax_prior(scores, mask)
