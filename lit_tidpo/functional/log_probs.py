"""Log-probs of tokens and divergences of their distributions, always in fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def selected_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-prob of one label per row of logits.

    The log-softmax runs in fp32 whatever the dtype of the logits: in bf16 it errs by several
    hundredths of a nat per token.

    Args:
        logits: ``[..., V]``; ``-inf`` on entries that are never a label is legal.
        labels: Token ids, ``[...]``.

    Returns:
        Log-probs in nats, fp32 (fp64 for fp64 logits), ``[...]``.

    Example:
        >>> selected_log_probs(torch.zeros(1, 4), torch.tensor([2])).exp()
        tensor([0.2500])
    """
    logits = _at_least_fp32(logits)
    label_logits = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return label_logits - logits.logsumexp(-1)


def token_log_probs(logits: Tensor, input_ids: Tensor, response_mask: Tensor) -> Tensor:
    """Log-prob of each response token, aligned with the token itself.

    The logits at position ``t - 1`` predict token ``t``. Logits that predict no response token take
    no part: NaN there changes neither value nor gradient.

    Args:
        logits: Model output for every position, ``[N, T, V]``.
        input_ids: Token ids, ``[N, T]``.
        response_mask: True at response tokens; never at position 0, ``[N, T]`` bool.

    Returns:
        Log-probs in nats, zero off the response, ``[N, T]``.

    Example:
        >>> mask = torch.tensor([[False, True, True]])
        >>> token_log_probs(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), mask)
        tensor([[ 0.0000, -0.6931, -0.6931]])
    """
    predicting = response_mask.roll(-1, dims=-1)
    selected = selected_log_probs(logits[predicting], input_ids[response_mask])
    return scatter_tokens(selected, response_mask)


def scatter_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Put values of the masked tokens, ``[M]`` in row order, into zeros ``[N, T]``."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def kl_divergence(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """``KL(reference || policy)`` of next-token distributions (TDPO, arXiv 2404.11999).

    Computed from the log-softmax of both, so that it stays finite where a softmax underflows.
    Entries to which the reference gives no probability (``-inf``) contribute zero.

    Args:
        reference_logits: ``[..., V]``.
        policy_logits: ``[..., V]``.

    Returns:
        Divergence in nats, ``[...]``.

    Example:
        >>> kl_divergence(torch.tensor([0.0, -500.0]), torch.tensor([-200.0, 0.0]))
        tensor(200.)
    """
    reference = _at_least_fp32(reference_logits).log_softmax(-1)
    policy = _at_least_fp32(policy_logits).log_softmax(-1)
    impossible = reference == -torch.inf
    difference = reference.masked_fill(impossible, 0.0) - policy.masked_fill(impossible, 0.0)
    return (reference.exp() * difference).sum(-1)


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
