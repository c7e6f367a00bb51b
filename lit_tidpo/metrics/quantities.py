"""What is reported of a batch of pairs, under the names that users of TRL know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lit_tidpo.functional.importance import normalize_scores
from lit_tidpo.functional.preference import sequence_sum
from lit_tidpo.objective import Outcome
from lit_tidpo.structures import TokenScores

_PER_ROLE = (
    "rewards/{}",
    "rewards/weighted_{}",
    "logps/{}",
    "kl/{}",
    "importance/{}_max_share",
    "importance/{}_effective_tokens",
    "importance/{}_last_token_share",
    "importance/{}_no_signal",
)
_PER_PAIR = (
    "rewards/margins",
    "rewards/accuracies",
    "rewards/weighted_margins",
    "rewards/weighted_accuracies",
    "logps/accuracies",
    "anchor/length",
    "anchor/empty",
    "loss/total",
)


def quantity_names(components: Iterable[str]) -> list[str]:
    """Names of everything that :func:`outcome_quantities` may report.

    Args:
        components: Names of the loss components.

    Returns:
        Names, some of which only turn up where a component or estimator computes them.
    """
    per_role = [name.format(role) for name in _PER_ROLE for role in ("chosen", "rejected")]
    return [*per_role, *_PER_PAIR, *(f"loss/{name}" for name in components)]


def preference_quantities(scores: Mapping[str, TokenScores], beta: float) -> dict[str, Tensor]:
    """Rewards, log-probs and divergences of each pair.

    A reward is ``beta * sum_t d_t``. Accuracies count a tie as one half, so that swapping chosen
    and rejected turns ``a`` into ``1 - a``.

    Args:
        scores: Per-token results of ``chosen`` and ``rejected``.
        beta: Inverse temperature of the implicit reward, per nat.

    Returns:
        Quantities by name, each ``[B]``.
    """
    values: dict[str, Tensor] = {}
    for role in ("chosen", "rejected"):
        tokens = scores[role]
        values[f"rewards/{role}"] = beta * sequence_sum(tokens.log_ratios, tokens.mask)
        values[f"logps/{role}"] = sequence_sum(tokens.policy_logps, tokens.mask)
        if tokens.kl is not None:
            values[f"kl/{role}"] = sequence_sum(tokens.kl, tokens.mask)
        if tokens.weights is not None:
            weighted = sequence_sum(tokens.log_ratios, tokens.mask, tokens.weights)
            values[f"rewards/weighted_{role}"] = beta * weighted
    values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    values["rewards/accuracies"] = _preferred(values["rewards/margins"])
    values["logps/accuracies"] = _preferred(values["logps/chosen"] - values["logps/rejected"])
    if "rewards/weighted_chosen" in values:
        margin = values["rewards/weighted_chosen"] - values["rewards/weighted_rejected"]
        values["rewards/weighted_margins"] = margin
        values["rewards/weighted_accuracies"] = _preferred(margin)
    return {name: value.detach() for name, value in values.items()}


def _preferred(margin: Tensor) -> Tensor:
    return (margin.sign() + 1) / 2


def importance_quantities(tokens: TokenScores) -> dict[str, Tensor]:
    """How the weights of a response are spread.

    Args:
        tokens: Results of one role, with weights.

    Returns:
        Each ``[B]``. ``max_share``: largest share of the total weight. ``effective_tokens``:
        exponential of the entropy of the shares. ``last_token_share``: share of the raw scores that
        falls on the last token, which attributes to itself. ``no_signal``: 1 where all raw scores
        are zero.
    """
    assert tokens.weights is not None
    shares = normalize_scores(tokens.weights, tokens.mask)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    values = {"max_share": shares.amax(-1), "effective_tokens": entropy.exp()}
    if tokens.raw_scores is not None:
        positions = torch.arange(tokens.mask.shape[1], device=tokens.mask.device)
        last = (positions * tokens.mask).argmax(-1, keepdim=True)
        raw = normalize_scores(tokens.raw_scores, tokens.mask)
        values["last_token_share"] = raw.gather(-1, last).squeeze(-1)
        values["no_signal"] = (sequence_sum(tokens.raw_scores, tokens.mask) == 0).float()
    return values


def anchor_quantities(anchor: TokenScores) -> dict[str, Tensor]:
    """Length of each anchor in tokens, and whether it is empty but for its end, ``[B]`` each."""
    length = anchor.mask.sum(-1).float()
    return {"anchor/length": length, "anchor/empty": (length <= 1).float()}


def outcome_quantities(outcome: Outcome, beta: float) -> dict[str, Tensor]:
    """Everything that is logged of a batch.

    Args:
        outcome: What the objective made of it.
        beta: Inverse temperature of the implicit reward, per nat.

    Returns:
        Quantities by name, each ``[B]``, detached.
    """
    values = {"loss/total": outcome.loss}
    values |= {f"loss/{name}": loss for name, loss in outcome.components.items()}
    values |= preference_quantities(outcome.scores, beta)
    for role in ("chosen", "rejected"):
        if outcome.scores[role].weights is not None:
            spread = importance_quantities(outcome.scores[role])
            values |= {f"importance/{role}_{name}": value for name, value in spread.items()}
    if "anchor" in outcome.scores:
        values |= anchor_quantities(outcome.scores["anchor"])
    return {name: value.detach() for name, value in values.items()}
