"""Scores of many estimators from one forward of each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.evidence.defects.rows import DefectRow, as_batch
from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.models.forward import run_models
from lit_tidpo.models.policy import PolicyConfig, build_policy
from lit_tidpo.models.reference import Reference
from lit_tidpo.structures import ResponseBatch

BATCH = 8

Scores = dict[str, list[Tensor]]
"""By estimator: the scores of each row's response tokens."""


def frozen_policy(path: str) -> nn.Module:
    """A policy that hands out attention; parameters without gradients make attribution cheaper."""
    config = PolicyConfig(path=path, attn_implementation="eager")
    return build_policy(config).requires_grad_(False).eval()


def score_rows(
    policy: nn.Module,
    reference: nn.Module,
    rows: Sequence[DefectRow],
    estimators: Mapping[str, ImportanceEstimator],
) -> Scores:
    """Score the rejected responses.

    Args:
        policy: The policy.
        reference: The model of the log-ratios.
        rows: What to score.
        estimators: Estimators by name; they share one forward of each batch.
    """
    needs = frozenset().union(*(estimator.needs for estimator in estimators.values()))
    frozen = Reference(reference)
    scores: dict[str, dict[int, Tensor]] = {name: {} for name in estimators}
    # Rows of like length side by side: less is padding.
    order = sorted(
        range(len(rows)), key=lambda place: len(rows[place].prompt + rows[place].rejected)
    )
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        batch = as_batch([rows[place] for place in places])
        forward = run_models(policy, frozen, batch, needs)
        for name, estimator in estimators.items():
            values = responses(estimator.scores(forward).detach(), batch)
            scores[name] |= dict(zip(places, values, strict=True))
    return {name: [found[place] for place in range(len(rows))] for name, found in scores.items()}


def weigh_rows(
    scores: Sequence[Tensor], rows: Sequence[DefectRow], weighting: Weighting
) -> list[Tensor]:
    """Final weights of scored responses."""
    weights: list[Tensor] = []
    for start in range(0, len(rows), BATCH):
        batch = as_batch(rows[start : start + BATCH])
        spread = torch.zeros(batch.input_ids.shape)
        spread[batch.response_mask] = torch.cat(list(scores[start : start + BATCH])).float()
        weights += responses(weighting.weights(spread, batch), batch)
    return weights


def responses(values: Tensor, batch: ResponseBatch) -> list[Tensor]:
    """Values of each row's response tokens, from ``[N, T]``."""
    spans = zip(values, batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    return [row[start:end] for row, start, end in spans]
