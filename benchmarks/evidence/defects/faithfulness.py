"""Deletion and insertion: does the model need the tokens that score high?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evidence.defects.measures import clustered
from benchmarks.evidence.defects.rows import DefectRow

FRACTIONS = (0.1, 0.2, 0.4)
RANDOM_ORDERS = 4


def faithfulness(
    policy: nn.Module,
    reference: nn.Module,
    rows: Sequence[DefectRow],
    scores: Mapping[str, Sequence[Tensor]],
) -> dict[str, dict[str, Any]]:
    """Change of what the models say when tokens are taken away, beyond that of random order.

    A token is taken away by putting the mean embedding of the vocabulary in its place; what is to
    be predicted stays. ``deletion`` takes the highest tokens away, 10, 20 and 40 % of the response;
    ``insertion`` takes all others away. Higher is more faithful for both: how much farther from the
    whole response deletion leads, and how much nearer to it insertion stays.

    Args:
        policy: The policy.
        reference: The model of the log-ratios.
        rows: Rejected responses.
        scores: Their scores by estimator.

    Returns:
        By estimator, measure and target: nats, or logits for ``max_logit``, with intervals over
        modules.
    """
    generator = torch.Generator().manual_seed(0)
    gains: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in scores}
    for place, row in enumerate(rows):
        length = len(row.rejected)
        orders = [values[place].argsort(descending=True, stable=True) for values in scores.values()]
        orders += [torch.randperm(length, generator=generator) for _ in range(RANDOM_ORDERS)]
        kept = torch.stack(
            [torch.ones(length, dtype=torch.bool), *(k for order in orders for k in _kept(order))]
        )
        for target, values in _targets(policy, reference, row, kept).items():
            distance = (values[1:] - values[0]).abs().view(len(orders), len(FRACTIONS), 2).mean(1)
            random = distance[len(scores) :].mean(0)
            for name, ours in zip(scores, distance, strict=False):
                gains[name][f"deletion {target}"].append(float(ours[0] - random[0]))
                gains[name][f"insertion {target}"].append(float(random[1] - ours[1]))
    modules = [row.module for row in rows]
    return {
        name: {measure: asdict(clustered(each, modules)) for measure, each in measures.items()}
        for name, measures in gains.items()
    }


def _kept(order: Tensor) -> list[Tensor]:
    """What deletion and insertion keep, fraction by fraction, ``[T]`` bool each."""
    patterns = []
    for fraction in FRACTIONS:
        top = torch.zeros(len(order), dtype=torch.bool)
        top[order[: max(1, round(fraction * len(order)))]] = True
        patterns += [~top, top]
    return patterns


@torch.no_grad()
def _targets(
    policy: nn.Module, reference: nn.Module, row: DefectRow, kept: Tensor
) -> dict[str, Tensor]:
    """Targets of one response for each pattern of kept tokens, ``[patterns]`` each."""
    prompt, response = torch.tensor(row.prompt), torch.tensor(row.rejected)
    logps, last = [], []
    for model in (policy, reference):
        table = model.get_input_embeddings().weight
        # All patterns share the prompt. Its last token goes with them: it predicts the first one.
        cache = model(input_ids=prompt[None, :-1], use_cache=True).cache
        cache.batch_repeat_interleave(len(kept))
        changed = torch.where(kept.unsqueeze(-1), table[response], table.mean(0))
        first = table[prompt[-1:]].expand(len(kept), 1, -1)
        logits = model(inputs_embeds=torch.cat([first, changed], dim=1), cache=cache).logits
        labels = response.expand(len(kept), -1).unsqueeze(-1)
        log_probs = logits[:, :-1].log_softmax(-1)
        logps.append(log_probs.gather(-1, labels).squeeze(-1).sum(-1))
        last.append(logits[:, -1])
    return {
        "response_logp": logps[0],
        "log_ratio": logps[0] - logps[1],
        "max_logit": last[0][:, last[0][0].argmax()],
    }
