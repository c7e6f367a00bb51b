"""Optimal transport between two sets of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

_ACCURACY = 1e-6


def unbalanced_transport(cost: Tensor, smoothing: float, mass_penalty: float) -> Tensor:
    """Plan that moves one unit from each row to the columns, or leaves it where that is dear.

    The minimum over ``P >= 0`` of ``<P, C> + s KL(P) + m KL(P 1) + m KL(P' 1)``, with
    ``KL(p) = sum p log p - p + 1``, by Sinkhorn's iteration (arXiv 1607.05816) of logarithms. Each
    half of it draws the rest of the way together by ``m / (m + s)``: the number of iterations
    follows, and no value has to be looked at.

    Args:
        cost: ``C``, finite, ``[n, k]``.
        smoothing: ``s``, above 0.
        mass_penalty: ``m``, above 0; where it is large all units are moved.

    Returns:
        ``P``, ``[n, k]``.

    Example:
        >>> plan = unbalanced_transport(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.1, 0.2)
        >>> plan[0, 0] > 100 * plan[0, 1]
        tensor(True)
    """
    kernel = -cost / smoothing
    damping = mass_penalty / (mass_penalty + smoothing)
    rows, columns = cost.new_zeros(cost.shape[0], 1), cost.new_zeros(1, cost.shape[1])
    way = 1.0
    while way > _ACCURACY:
        rows = -damping * torch.logsumexp(kernel + columns, 1, keepdim=True)
        columns = -damping * torch.logsumexp(kernel + rows, 0, keepdim=True)
        way *= damping**2
    return (rows + kernel + columns).exp()
