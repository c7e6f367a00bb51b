"""Weighted preference losses (TI-DPO, arXiv 2505.19653, Eq. 9-12; TDPO, arXiv 2404.11999)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def sequence_sum(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum per-token values over the response, each times its token's weight if there are weights.

    What stands off the mask takes no part, NaN and infinity included.

    Args:
        values: Per-token values, ``[B, T]``.
        mask: Response tokens, ``[B, T]`` bool.
        weights: Token weights, ``[B, T]``.

    Returns:
        Sums, ``[B]``.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[True, True, False]])
        >>> sequence_sum(torch.tensor([[1.0, 2.0, torch.nan]]), mask)
        tensor([3.])
    """
    values = values.masked_fill(~mask, 0.0)
    if weights is not None:
        values = values * weights.masked_fill(~mask, 0.0)
    return values.sum(-1)


def tdpo_margin(
    margin: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    alpha: float,
    variant: int = 2,
) -> Tensor:
    """Take TDPO's difference of sequential KL divergences off a margin.

    TDPO2 (arXiv 2404.11999): ``delta - alpha (k(y_l) - stopgrad(k(y_w)))``.
    TDPO1: ``delta - (k(y_l) - k(y_w))``.

    Args:
        margin: ``delta = sum_t w_t d_t(y_w) - sum_t w_t d_t(y_l)`` in nats, ``[B]``.
        chosen_kl: ``k(y_w)``, the sum of the position-wise ``KL(reference || policy)``, ``[B]``.
        rejected_kl: ``k(y_l)``, ``[B]``.
        alpha: Weight of the difference in TDPO2; TDPO1 has none.
        variant: 1 or 2.

    Returns:
        Margin in nats, ``[B]``.

    Example:
        >>> import torch
        >>> one, three = torch.tensor([1.0]), torch.tensor([3.0])
        >>> tdpo_margin(one, chosen_kl=one, rejected_kl=three, alpha=0.5)
        tensor([0.])
    """
    if variant == 1:
        return margin - (rejected_kl - chosen_kl)
    return margin - alpha * (rejected_kl - chosen_kl.detach())


def dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """``-log sigmoid(beta * margin)`` (Eq. 9-12; DPO, arXiv 2305.18290, Eq. 7).

    Args:
        margin: ``delta`` in nats, ``[B]``.
        beta: Inverse temperature of the implicit reward, per nat.

    Returns:
        Loss of each pair, ``[B]``.

    Example:
        >>> import torch
        >>> dpo_loss(torch.zeros(1), beta=0.1)
        tensor([0.6931])
    """
    return -logsigmoid(beta * margin)
