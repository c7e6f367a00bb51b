"""What scores of the rows are asked: what they follow, how stable and how faithful they are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evidence.defects.scoring import DefectRow, Scores
from benchmarks.evidence.intervals import Figure, clustered, rank_correlation
from lit_tidpo.functional.importance import gaussian_prior

FRACTIONS = (0.1, 0.2, 0.4)
RANDOM_ORDERS = 4
_BINS = 40


def over_modules(values: Sequence[float], rows: Sequence[DefectRow]) -> Figure:
    """Mean over rows with an interval over modules."""
    return clustered(values, [row.module for row in rows])


def correlations(scores: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """Rank correlation within each row."""
    return [rank_correlation(a, b) for a, b in zip(scores, others, strict=True)]


def by_position(rows: Sequence[DefectRow], others: Sequence[DefectRow]) -> Scores:
    """Baselines that know the place in the response alone.

    ``learnt`` has the rate of defects at each of the last 40 places, from rows of another split.
    Bins of the relative place, or from the start, rank those rows worse.
    """
    marked, seen = torch.zeros(_BINS), torch.zeros(_BINS)
    for row in others:
        marked.index_add_(0, _from_end(row), row.marked.float())
        seen.index_add_(0, _from_end(row), torch.ones(len(row.marked)))
    rate = marked / seen.clamp(min=1)
    return {
        "gaussian": [gaussian_prior(torch.ones_like(row.marked)[None])[0] for row in rows],
        "last_token": [torch.arange(len(row.marked)) for row in rows],
        "learnt": [rate[_from_end(row)] for row in rows],
    }


def _from_end(row: DefectRow) -> Tensor:
    return torch.arange(len(row.marked)).flip(0).clamp(max=_BINS - 1)


def biases(
    scores: Sequence[Tensor], rows: Sequence[DefectRow], policy: nn.Module, counts: Counter[int]
) -> dict[str, Figure]:
    """Rank correlations of scores with what should not matter.

    Within rows with a token's ``position``, its ``frequency`` (counts in the training data) and its
    ``embedding_norm``; over rows of the ``length`` with the largest score relative to the mean. And
    the ``last_share``: the last token's score, where 1 is a fair share.
    """
    norms = policy.get_input_embeddings().weight.detach().norm(dim=-1)
    features = {
        "position": [torch.arange(len(row.rejected)) for row in rows],
        "frequency": [torch.tensor([counts[token] for token in row.rejected]) for row in rows],
        "embedding_norm": [norms[row.rejected] for row in rows],
    }
    found = {
        name: over_modules(correlations(scores, each), rows) for name, each in features.items()
    }
    # In a row of zeros all shares are fair.
    shares = [each / each.mean() if each.any() else torch.ones_like(each) for each in scores]
    found["last_share"] = over_modules([float(each[-1]) for each in shares], rows)
    peaks = [float(each.max()) for each in shares]
    return {**found, "length": {"mean": rank_correlation([len(each) for each in shares], peaks)}}


def over_seeds(
    runs: Mapping[str, Sequence[Sequence[Tensor]]], rows: Sequence[DefectRow]
) -> dict[str, Figure]:
    """Rank correlation between the scores of two seeds, over all pairs of seeds.

    Args:
        runs: By estimator, the scores of at least two seeds.
        rows: The first of the rows that were scored.
    """
    found = {}
    for name, seeds in runs.items():
        kept = [scores[: len(rows)] for scores in seeds]
        pairs = [correlations(a, b) for a, b in combinations(kept, 2)]
        found[name] = over_modules([fmean(row) for row in zip(*pairs, strict=True)], rows)
    return found


def agreement(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean rank correlation between each two estimators, row by row."""
    found: dict[str, dict[str, float]] = {name: {name: 1.0} for name in scores}
    for a, b in combinations(scores, 2):
        found[a][b] = found[b][a] = fmean(correlations(scores[a], scores[b]))
    return found


def over_white_space(
    plain: tuple[Sequence[DefectRow], Scores], changed: tuple[Sequence[DefectRow], Scores]
) -> dict[str, Figure]:
    """Rank correlation between the scores of texts that differ in white space, token by token."""
    (rows, scores), (others, other_scores), found = plain, changed, {}
    for name in scores:
        each = zip(rows, scores[name], others, other_scores[name], strict=True)
        found[name] = over_modules([rank_correlation(*aligned(*four)) for four in each], rows)
    return found


def aligned(
    row: DefectRow, scores: Tensor, other: DefectRow, others: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores of the row's tokens that hold more than white space, and those of their text.

    The text's score in the other row is the mean over its characters of the score of the token that
    holds each.
    """
    tokens, place = _holders(row).unique(return_inverse=True)
    sums = torch.zeros(len(tokens)).index_add_(0, place, others[_holders(other)].float())
    return scores[tokens], sums / place.bincount()


def _holders(row: DefectRow) -> Tensor:
    """The token of each character that is no white space; the last one that has a part of it."""
    holder = {place: token for token, span in enumerate(row.places) for place in range(*span)}
    text = row.fields["rejected"]
    return torch.tensor([holder[place] for place in range(len(text)) if not text[place].isspace()])


def faithfulness(
    policy: nn.Module, reference: nn.Module, rows: Sequence[DefectRow], scores: Scores
) -> dict[str, dict[str, Figure]]:
    """Change of what the models say when tokens are taken away, beyond that of random order.

    A token is taken away by putting the mean embedding of the vocabulary in its place; what is to
    be predicted stays. ``deletion`` takes the highest tokens away, 10, 20 and 40 % of the response;
    ``insertion`` takes all others away. Higher is more faithful for both: how much farther from the
    whole response deletion leads, and how much nearer to it insertion stays.

    Returns:
        By estimator, measure and target: nats, or logits for ``max_logit``.
    """
    generator = torch.Generator().manual_seed(0)
    gains: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in scores}
    for place, row in enumerate(rows):
        length = len(row.rejected)
        orders = [values[place].argsort(descending=True, stable=True) for values in scores.values()]
        orders += [torch.randperm(length, generator=generator) for _ in range(RANDOM_ORDERS)]
        kept = torch.cat([torch.ones(1, length, dtype=torch.bool), *map(_patterns, orders)])
        for target, values in targets(policy, reference, row, kept).items():
            distance = (values[1:] - values[0]).abs().view(len(orders), len(FRACTIONS), 2).mean(1)
            chance = distance[len(scores) :].mean(0)
            for name, (deleted, inserted) in zip(scores, distance, strict=False):
                gains[name][f"deletion {target}"].append(float(deleted - chance[0]))
                gains[name][f"insertion {target}"].append(float(chance[1] - inserted))
    return {
        name: {measure: over_modules(each, rows) for measure, each in measures.items()}
        for name, measures in gains.items()
    }


def _patterns(order: Tensor) -> Tensor:
    """What deletion and insertion keep, fraction by fraction, ``[2 * fractions, T]`` bool."""
    ranks = order.argsort()
    tops = [ranks < max(1, round(fraction * len(order))) for fraction in FRACTIONS]
    return torch.stack([kept for top in tops for kept in (~top, top)])


@torch.no_grad()
def targets(policy: Any, reference: Any, row: DefectRow, kept: Tensor) -> dict[str, Tensor]:
    """Targets of one response for each pattern of kept tokens ``[patterns, T]``."""
    prompt, response = torch.tensor(row.ids["prompt_ids"]), torch.tensor(row.rejected)
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
        logps.append(logits[:, :-1].log_softmax(-1).gather(-1, labels).sum((1, 2)))
        last.append(logits[:, -1])
    highest = last[0][:, last[0][0].argmax()]
    return {"response_logp": logps[0], "log_ratio": logps[0] - logps[1], "max_logit": highest}
