"""Triplet loss over sampled anchors (TI-DPO, arXiv 2505.19653, Eq. 4 and 13)."""

from __future__ import annotations

import torch
from torch import Tensor


def _from_first_token(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each row so that its first masked token stands in column 0."""
    order = (~mask).to(torch.int8).argsort(dim=-1, stable=True)
    return values.masked_fill(~mask, 0.0).gather(-1, order), mask.gather(-1, order)


def response_distance(
    first: Tensor,
    first_mask: Tensor,
    second: Tensor,
    second_mask: Tensor,
    mean: bool = False,
) -> Tensor:
    """Squared distance of two log-ratio vectors, position by position of the responses.

    ``D(a, b) = sum_t (d_t(a) - d_t(b))^2`` over the response positions that both have, counted from
    the first response token of each.

    Args:
        first: Log-ratios in nats, ``[B, T1]``.
        first_mask: Response tokens, ``[B, T1]`` bool.
        second: Log-ratios in nats, ``[B, T2]``.
        second_mask: Response tokens, ``[B, T2]`` bool.
        mean: Divide by the number of shared positions, so that length does not set the scale.

    Returns:
        Distance in nats squared, ``[B]``.

    Example:
        >>> a, b = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[4.0, 9.0]])
        >>> a_mask, b_mask = torch.tensor([[False, True, True]]), torch.tensor([[True, False]])
        >>> response_distance(a, a_mask, b, b_mask)
        tensor([9.])
    """
    first, first_mask = _from_first_token(first, first_mask)
    second, second_mask = _from_first_token(second, second_mask)
    width = min(first.shape[-1], second.shape[-1])
    shared = first_mask[:, :width] & second_mask[:, :width]
    squares = (first[:, :width] - second[:, :width]).square().masked_fill(~shared, 0.0)
    distance = squares.sum(-1)
    return distance / shared.sum(-1).clamp(min=1) if mean else distance


def triplet_loss(chosen_distance: Tensor, rejected_distance: Tensor, margin: float) -> Tensor:
    """``max(0, D(y, y_w) - D(y, y_l) + margin)`` for an anchor ``y`` (Eq. 13).

    Args:
        chosen_distance: ``D(y, y_w)``, ``[B]``.
        rejected_distance: ``D(y, y_l)``, ``[B]``.
        margin: Distance in nats squared by which the rejected response must lie further away.

    Returns:
        Loss of each triplet, ``[B]``.

    Example:
        >>> triplet_loss(torch.tensor([2.0]), torch.tensor([1.5]), margin=1.0)
        tensor([1.5000])
    """
    return (chosen_distance - rejected_distance + margin).clamp(min=0)
