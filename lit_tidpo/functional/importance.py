"""From raw importance scores to token weights (TI-DPO, arXiv 2505.19653, Eq. 6-8)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d


def normalize_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Divide scores by the sum of their absolute values over the masked tokens: ``I_norm``.

    A row whose scores are all zero has no evidence to rank its tokens; it gets ``1 / n`` for each
    of its ``n`` tokens.

    Args:
        scores: Scores, ``[N, T]``.
        mask: Tokens that take part, ``[N, T]`` bool.

    Returns:
        Shares whose absolute values sum to 1 over the mask, zero elsewhere, ``[N, T]``.

    Example:
        >>> normalize_scores(torch.tensor([[9.0, 1.0, 3.0]]), torch.tensor([[False, True, True]]))
        tensor([[0.0000, 0.2500, 0.7500]])
    """
    scores = scores.masked_fill(~mask, 0.0)
    total = scores.abs().sum(-1, keepdim=True)
    # Scores near the largest number have an infinite sum; those in units of the peak do not.
    huge = total.isinf()
    scores = scores / scores.abs().amax(-1, keepdim=True).where(huge, 1.0)
    total = scores.abs().sum(-1, keepdim=True).where(huge, total)
    even = mask / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(total > 0, scores / total.where(total > 0, 1.0), even.to(scores.dtype))


def temper_scores(scores: Tensor, mask: Tensor, power: float) -> Tensor:
    """Raise scores to a power, in units of the largest of their row.

    Args:
        scores: Non-negative scores, ``[N, T]``.
        mask: Tokens that take part, ``[N, T]`` bool.
        power: Below 1 draws the scores of a row together, above 1 apart.

    Returns:
        Scores between 0 and 1, zero off the mask, ``[N, T]``.

    Example:
        >>> temper_scores(torch.tensor([[1.0, 4.0]]), torch.tensor([[True, True]]), power=0.5)
        tensor([[0.5000, 1.0000]])
    """
    # The unit cancels when scores are normalised; it keeps powers of large scores finite.
    return scale_weights(scores, mask, "max").pow(power)


def relative_to_neighbours(scores: Tensor, mask: Tensor, radius: int) -> Tensor:
    """Divide each score by the mean of the masked scores around it.

    What changes slowly along a response, such as the nearness of the target, cancels.

    Args:
        scores: Non-negative scores, ``[N, T]``.
        mask: Tokens that take part, ``[N, T]`` bool.
        radius: Places to each side that count; the token itself counts, too.

    Returns:
        Scores relative to their surroundings, zero off the mask, ``[N, T]``.

    Example:
        >>> relative_to_neighbours(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]), 1)
        tensor([[0.5000, 1.5000]])
    """

    def around(values: Tensor) -> Tensor:
        return avg_pool1d(values.unsqueeze(1), 2 * radius + 1, stride=1, padding=radius).squeeze(1)

    scores = scores.masked_fill(~mask, 0.0)
    sums, counts = around(scores), around(mask.to(scores.dtype))
    return torch.where(sums > 0, scores * counts / sums.where(sums > 0, 1.0), 0.0)


def gaussian_prior(mask: Tensor, sigma_divisor: float = 4.0, normalized: bool = True) -> Tensor:
    """Gaussian over the masked positions, centred on their middle (Eq. 7).

    For the ``i``-th of ``n`` masked tokens: ``exp(-((i - mu) / sigma)^2 / 2)`` with
    ``mu = (n - 1) / 2`` and ``sigma = n / sigma_divisor``.

    Args:
        mask: Tokens that take part, ``[N, T]`` bool.
        sigma_divisor: ``c`` in ``sigma = n / c``; 4 in the paper, 8 in its authors' code.
        normalized: Scale each row to sum 1; otherwise the peak is 1.

    Returns:
        Prior, zero off the mask, ``[N, T]`` fp32.

    Example:
        >>> gaussian_prior(torch.tensor([[True, True, True]]), normalized=False)
        tensor([[0.4111, 1.0000, 0.4111]])
    """
    length = mask.sum(-1, keepdim=True).clamp(min=1)
    position = mask.cumsum(-1) - 1
    distance = (position - (length - 1) / 2) / (length / sigma_divisor)
    prior = torch.exp(-distance.square() / 2).masked_fill(~mask, 0.0)
    return normalize_scores(prior, mask) if normalized else prior


def softmax_prior(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of the scores over the masked tokens, in units of their mean.

    The paper's ablation puts a softmax in the place of the Gaussian. Gradient norms have no natural
    unit, so the scores are divided by their mean first: the result does not depend on their scale.

    Args:
        scores: Non-negative scores, ``[N, T]``.
        mask: Tokens that take part, ``[N, T]`` bool.

    Returns:
        Distribution over the mask, zero elsewhere, ``[N, T]``.

    Example:
        >>> softmax_prior(torch.tensor([[5.0, 5.0]]), torch.tensor([[True, True]]))
        tensor([[0.5000, 0.5000]])
    """
    relative = normalize_scores(scores, mask) * mask.sum(-1, keepdim=True)
    weights = relative.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights.masked_fill(~mask, 0.0)  # a row without tokens is NaN before this


def hybrid_weights(scores: Tensor, prior: Tensor, mix: float) -> Tensor:
    """Mix normalised scores with a prior: ``W = lambda I_norm + (1 - lambda) P`` (Eq. 8).

    Args:
        scores: ``I_norm``, ``[N, T]``.
        prior: ``P``, ``[N, T]``.
        mix: ``lambda``, between 0 and 1.

    Returns:
        Weights, ``[N, T]``.

    Example:
        >>> hybrid_weights(torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5]), mix=0.7)
        tensor([0.2900, 0.7100])
    """
    return mix * scores + (1 - mix) * prior


def contrast_factor(contrast: Tensor, slope: float, low: float, high: float) -> Tensor:
    """``exp(slope * clamp(contrast, low, high))`` (TIS-DPO, arXiv 2410.04350).

    Args:
        contrast: Log-probs under one model less those under another, in nats, any shape.
        slope: Factor in the exponent.
        low: Least contrast that counts, in nats.
        high: Largest contrast that counts, in nats.

    Example:
        >>> contrast_factor(torch.tensor([-3.0, 0.0]), slope=1.0, low=-0.5, high=1.5)
        tensor([0.6065, 1.0000])
    """
    return (slope * contrast.clamp(low, high)).exp()


Scale = Literal["mean", "sum", "max", "none"]


def scale_weights(weights: Tensor, mask: Tensor, scale: Scale = "mean") -> Tensor:
    """Scale each row of weights over the masked tokens.

    Args:
        weights: Weights; where they are signed, their absolute values count, ``[N, T]``.
        mask: Response tokens, ``[N, T]`` bool.
        scale: What becomes 1: the ``mean`` (equal weights are then exactly plain DPO), the ``sum``,
            or the ``max`` (the scale of the paper's case tables); ``none`` keeps them as they are.

    Returns:
        Weights, zero off the mask, ``[N, T]``.

    Example:
        >>> scale_weights(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
        tensor([[0.5000, 1.5000]])
    """
    if scale == "none":
        return weights.masked_fill(~mask, 0.0)
    if scale == "max":
        weights = weights.masked_fill(~mask, 0.0)
        peak = weights.abs().amax(-1, keepdim=True)
        return weights / peak.where(peak > 0, 1.0)
    shares = normalize_scores(weights, mask)
    return shares * mask.sum(-1, keepdim=True) if scale == "mean" else shares


def clip_weights(weights: Tensor, mask: Tensor, limit: float) -> Tensor:
    """Cut weights off at a multiple of their row's mean.

    Args:
        weights: Non-negative weights, ``[N, T]``.
        mask: Response tokens, ``[N, T]`` bool.
        limit: Largest weight that stays, in units of the mean over the masked tokens, at least 1.

    Returns:
        Weights, zero off the mask, ``[N, T]``.

    Example:
        >>> clip_weights(torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[True, True, True]]), 1.5)
        tensor([[0., 1., 3.]])
    """
    weights = weights.masked_fill(~mask, 0.0)
    mean = weights.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.minimum(weights, limit * mean)


def highest_scores(scores: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """The masked tokens with the highest scores of each row; of like ones the earlier.

    Args:
        scores: Scores, ``[N, T]``.
        mask: Tokens that take part, ``[N, T]`` bool.
        counts: How many of each row, ``[N]``.

    Returns:
        True at the highest, ``[N, T]`` bool.

    Example:
        >>> mask = torch.tensor([[True, True, True, False]])
        >>> highest_scores(torch.tensor([[2.0, 1.0, 3.0, 9.0]]), mask, torch.tensor([2]))
        tensor([[ True, False,  True, False]])
    """
    inside = scores.masked_fill(~mask, -torch.inf)
    ranks = inside.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    highest: Tensor = mask & (ranks < counts.unsqueeze(-1))
    return highest
