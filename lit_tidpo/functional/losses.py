"""What losses are made of (TI-DPO, arXiv 2505.19653, Eq. 4, 9-13; TDPO, arXiv 2404.11999)."""

from __future__ import annotations

import torch
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
        >>> mask = torch.tensor([[True, True, False]])
        >>> sequence_sum(torch.tensor([[1.0, 2.0, torch.nan]]), mask)
        tensor([3.])
    """
    values = values.masked_fill(~mask, 0.0)
    if weights is not None:
        values = values * weights.masked_fill(~mask, 0.0)
    return values.sum(-1)


def sequence_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average per-token values over the response: their (weighted) sum by its number of tokens.

    Args:
        values: Per-token values, ``[B, T]``.
        mask: Response tokens, ``[B, T]`` bool.
        weights: Token weights, ``[B, T]``.

    Returns:
        Means, ``[B]``.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> sequence_mean(torch.tensor([[1.0, 2.0, 7.0]]), mask)
        tensor([1.5000])
    """
    return sequence_sum(values, mask, weights) / mask.sum(-1).clamp(min=1)


def response_positions(mask: Tensor) -> Tensor:
    """Position of each token in its response, from 0; meaningless off the response, ``[B, T]``.

    Example:
        >>> response_positions(torch.tensor([[False, True, True]]))
        tensor([[-1,  0,  1]])
    """
    return mask.cumsum(-1) - 1


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
        >>> one, three = torch.tensor([1.0]), torch.tensor([3.0])
        >>> tdpo_margin(one, chosen_kl=one, rejected_kl=three, alpha=0.5)
        tensor([0.])
    """
    if variant == 1:
        return margin - (rejected_kl - chosen_kl)
    return margin - alpha * (rejected_kl - chosen_kl.detach())


def dpo_loss(margin: Tensor, beta: float | Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-log sigmoid(beta * margin)`` (Eq. 9-12; DPO, arXiv 2305.18290, Eq. 7).

    With labels that are wrong with probability ``epsilon`` (conservative DPO) it is
    ``-(1 - epsilon) log sigmoid(beta margin) - epsilon log sigmoid(-beta margin)``.

    Args:
        margin: ``delta`` in nats, ``[B]``.
        beta: Inverse temperature of the implicit reward, per nat.
        label_smoothing: ``epsilon``.

    Returns:
        Loss of each pair, ``[B]``.

    Example:
        >>> dpo_loss(torch.zeros(1), beta=0.1)
        tensor([0.6931])
    """
    kept = -logsigmoid(beta * margin)
    if label_smoothing == 0:
        return kept
    return (1 - label_smoothing) * kept - label_smoothing * logsigmoid(-beta * margin)


def scaled_basu_loss(log_ratio: Tensor, power: float, scale: float = 4.0) -> Tensor:
    """Ratio matching by the scaled Basu divergence (BPO, arXiv 2505.19601, Table 2: SBA).

    ``R ** (power + 1) / (scale (power + 1)) - R ** -power / (scale power)`` of the ratio ``R``, and
    ``(R + log R) / scale`` at the power 0, its limit up to a constant. With the scale 4 the
    gradient at ``R = 1`` is that of DPO's ``log(1 + R)``.

    Args:
        log_ratio: ``log R``, any shape.
        power: The paper's ``lambda``, 0 or more.
        scale: The paper's ``s``, above 0.

    Example:
        >>> scaled_basu_loss(torch.zeros(1), power=1.0)
        tensor([-0.1250])
    """
    if power == 0:
        return (log_ratio.exp() + log_ratio) / scale
    rising = ((power + 1) * log_ratio).exp() / (power + 1)
    return (rising - (-power * log_ratio).exp() / power) / scale


def log_odds(logps: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of a log-prob below 0, without cancellation where ``p`` is near 1.

    Args:
        logps: ``log p`` in nats, any shape.

    Example:
        >>> log_odds(torch.tensor([0.5, 0.75]).log()).exp().round()
        tensor([1., 3.])
    """
    return logps - torch.log(-torch.expm1(logps))


def plackett_luce_loss(rewards: Tensor, present: Tensor) -> Tensor:
    """Negative log-likelihood of an order of responses, best first (Plackett-Luce).

    ``-sum_k log(exp r_k / sum_{j >= k} exp r_j)`` (DPO, arXiv 2305.18290, Eq. 20).

    Args:
        rewards: ``[B, K]``.
        present: Whether there is such a response, ``[B, K]`` bool.

    Returns:
        Loss of each group, ``[B]``.

    Example:
        >>> rewards = torch.tensor([[2.0, 1.0, 5.0]]).log()
        >>> plackett_luce_loss(rewards, torch.tensor([[True, True, False]])).exp()
        tensor([1.5000])
    """
    rewards = rewards.masked_fill(~present, -torch.inf)
    rest = rewards.flip(-1).logcumsumexp(-1).flip(-1)
    return (rest - rewards).masked_fill(~present, 0.0).sum(-1)


def from_first_token(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each row so that the first token of its response stands in column 0.

    Args:
        values: Per-token values, ``[B, T]``.
        mask: Response tokens, ``[B, T]`` bool.

    Returns:
        Values, zero off the response, and mask, ``[B, T]`` both.

    Example:
        >>> from_first_token(torch.tensor([[7.0, 1.0]]), torch.tensor([[False, True]]))
        (tensor([[1., 0.]]), tensor([[ True, False]]))
    """
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
    first, first_mask = from_first_token(first, first_mask)
    second, second_mask = from_first_token(second, second_mask)
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
