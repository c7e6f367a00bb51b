"""What is reported of a batch, under the names that users of TRL know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lit_tidpo.functional.importance import normalize_scores
from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.objective import ObjectiveValues
from lit_tidpo.structures import ResponseBatch, Results

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
_PER_PROMPT = (
    "rewards/margins",
    "rewards/accuracies",
    "rewards/mean",
    "rewards/weighted_margins",
    "rewards/weighted_accuracies",
    "logps/accuracies",
    "logps/mean",
    "anchor/length",
    "anchor/empty",
    "loss/total",
)
PAIR = ("chosen", "rejected")


def quantity_names(losses: Mapping[str, LossComponent]) -> list[str]:
    """Names of everything that :func:`objective_quantities` may report.

    Args:
        losses: Losses by name.

    Returns:
        Names, some of which only turn up where a loss or estimator computes them.
    """
    per_role = [name.format(role) for name in _PER_ROLE for role in PAIR]
    own = [f"{name}/{key}" for name, loss in losses.items() for key in loss.quantities]
    return [*per_role, *_PER_PROMPT, *(f"loss/{name}" for name in losses), *own]


def preference_quantities(context: LossContext, beta: float) -> dict[str, Tensor]:
    """Rewards, log-probs and divergences of each prompt.

    A reward is ``beta * sum_t d_t``. Accuracies are the share of the pairs of a prompt's responses
    whose earlier role has the higher value: one pair for chosen and rejected, all pairs of ranked
    responses. They count a tie as one half, so that swapping chosen and rejected turns ``a`` into
    ``1 - a``.

    Args:
        context: Results by role.
        beta: Inverse temperature of the implicit reward, per nat.

    Returns:
        Quantities by name, each ``[B]``.
    """
    if set(PAIR) <= context.keys():
        values = _pair_quantities(context, beta)
    else:
        values = _group_quantities(context.responses, beta)
    return {name: value.detach() for name, value in values.items()}


def _pair_quantities(context: LossContext, beta: float) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for role in PAIR:
        tokens = context[role]
        values[f"logps/{role}"] = sequence_sum(tokens["policy.logps"], tokens.mask)
        if "reference.logps" in tokens:
            values[f"rewards/{role}"] = beta * sequence_sum(tokens.log_ratios, tokens.mask)
            if "weights" in tokens:
                weighted = sequence_sum(tokens.log_ratios, tokens.mask, tokens["weights"])
                values[f"rewards/weighted_{role}"] = beta * weighted
        if "reference.kl" in tokens:
            values[f"kl/{role}"] = sequence_sum(tokens["reference.kl"], tokens.mask)
    values["logps/accuracies"] = _preferred(values["logps/chosen"] - values["logps/rejected"])
    for kind in ("", "weighted_"):
        if f"rewards/{kind}chosen" in values:
            margin = values[f"rewards/{kind}chosen"] - values[f"rewards/{kind}rejected"]
            values[f"rewards/{kind}margins"] = margin
            values[f"rewards/{kind}accuracies"] = _preferred(margin)
    return values


def _group_quantities(responses: Results, beta: float) -> dict[str, Tensor]:
    """Means over the responses of each prompt, and how well their order is kept."""
    sums = {"logps": sequence_sum(responses["policy.logps"], responses.mask)}
    if "reference.logps" in responses:
        sums["rewards"] = beta * sequence_sum(responses.log_ratios, responses.mask)
    values = {}
    for name, of_rows in sums.items():
        table, present = responses.batch.by_prompt(of_rows)
        values[f"{name}/mean"] = table.sum(-1) / present.sum(-1)
        if len(responses.batch.roles) > 1:
            later = torch.ones(table.shape[-1:] * 2, dtype=torch.bool, device=table.device).triu(1)
            both = present[:, :, None] & present[:, None, :] & later
            kept = _preferred(table[:, :, None] - table[:, None, :]) * both
            # A prompt with one response has no order to keep, and counts as one half.
            pairs = both.sum((1, 2))
            share = kept.sum((1, 2)) / pairs.clamp(min=1)
            values[f"{name}/accuracies"] = torch.where(pairs > 0, share, 0.5)
    return values


def by_label(
    quantities: Mapping[str, Tensor], batch: ResponseBatch
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Quantities of single labelled responses, once more for those of each label.

    Args:
        quantities: Of each prompt, by name; ``NAME/mean`` is also reported as ``NAME/chosen`` of
            desirable and as ``NAME/rejected`` of undesirable responses.
        batch: Their rows.

    Yields:
        Quantities by name, ``[B]`` each, and where they count, ``[B]`` bool: nothing for a label
        that no counted response has, nor of pairs and groups.
    """
    known = batch.host.desirable
    if batch.desirable is None or known is None or len(batch.roles) > 1:
        return
    for role, wanted in zip(PAIR, (True, False), strict=True):
        own = {
            name.replace("/mean", f"/{role}"): value
            for name, value in quantities.items()
            if name.endswith("/mean")
        }
        if bool((batch.host.counted & (known == wanted)).any()):
            yield own, batch.counted & (batch.desirable == wanted)


def _preferred(margin: Tensor) -> Tensor:
    return (margin.sign() + 1) / 2


def importance_quantities(tokens: Results) -> dict[str, Tensor]:
    """How the weights of a response are spread.

    Args:
        tokens: Results of one role, with weights.

    Returns:
        Each ``[B]``. ``max_share``: largest share of the total weight. ``effective_tokens``:
        exponential of the entropy of the shares. ``last_token_share``: share of the scores that
        falls on the last token, which attributes to itself. ``no_signal``: 1 where all scores are
        zero.
    """
    shares = normalize_scores(tokens["weights"], tokens.mask).abs()
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    values = {"max_share": shares.amax(-1), "effective_tokens": entropy.exp()}
    if "scores" in tokens:
        scores = tokens["scores"].abs()
        positions = torch.arange(tokens.mask.shape[1], device=tokens.mask.device)
        last = (positions * tokens.mask).argmax(-1, keepdim=True)
        values["last_token_share"] = (
            normalize_scores(scores, tokens.mask).gather(-1, last).squeeze(-1)
        )
        values["no_signal"] = (sequence_sum(scores, tokens.mask) == 0).float()
    return values


def anchor_quantities(anchor: Results) -> dict[str, Tensor]:
    """Length of each anchor in tokens, and whether it is empty but for its end, ``[B]`` each."""
    length = anchor.mask.sum(-1).float()
    return {"anchor/length": length, "anchor/empty": (length <= 1).float()}


def objective_quantities(found: ObjectiveValues, beta: float) -> dict[str, Tensor]:
    """Everything that is logged of a batch.

    Args:
        found: What the objective made of it.
        beta: Inverse temperature of the implicit reward, per nat.

    Returns:
        Quantities by name, each ``[B]``, detached.
    """
    context = found.context
    values = {"loss/total": found.loss}
    values |= {f"loss/{name}": loss for name, loss in found.losses.items()}
    values |= found.quantities
    values |= preference_quantities(context, beta)
    for role in PAIR:
        if role in context and "weights" in context[role]:
            spread = importance_quantities(context[role])
            values |= {f"importance/{role}_{name}": value for name, value in spread.items()}
    if "anchor" in context:
        values |= anchor_quantities(context["anchor"])
    return {name: value.detach() for name, value in values.items()}
