"""Do scores stay when nothing that matters changes? And do estimators agree?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.evidence.defects.measures import Interval, clustered, rank_correlation
from benchmarks.evidence.defects.rows import DefectRow
from benchmarks.evidence.defects.scoring import Scores


def over_seeds(
    runs: Mapping[str, Sequence[Sequence[Tensor]]], rows: Sequence[DefectRow]
) -> dict[str, Interval]:
    """Rank correlation between the scores of two seeds, over all pairs of seeds.

    Args:
        runs: By estimator, the scores of at least two seeds.
        rows: The rows.
    """
    modules = [row.module for row in rows]
    return {
        name: clustered(
            [
                fmean(rank_correlation(a, b) for a, b in combinations(scores, 2))
                for scores in zip(*seeds, strict=True)
            ],
            modules,
        )
        for name, seeds in runs.items()
    }


def over_white_space(
    scores: Scores, others: Scores, rows: Sequence[tuple[DefectRow, DefectRow]]
) -> dict[str, Interval]:
    """Rank correlation between a response and the same with other white space, token by token.

    Args:
        scores: Scores of the first rows.
        others: Scores of the second rows.
        rows: Both.
    """
    modules = [row.module for row, _ in rows]
    return {
        name: clustered(
            [
                rank_correlation(*aligned(row, first, other, second))
                for (row, other), first, second in zip(
                    rows, scores[name], others[name], strict=True
                )
            ],
            modules,
        )
        for name in scores
    }


def aligned(
    row: DefectRow, scores: Tensor, other: DefectRow, other_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores of the row's tokens that hold more than white space, and those of their text.

    The text's score in the other row is the mean over its characters of the score of the token that
    holds each.
    """
    by_character = torch.stack([score for _, score in _characters(other, other_scores)])
    holders = torch.tensor([token for token, _ in _characters(row, scores)])
    assert len(holders) == len(by_character)
    tokens, place = holders.unique(return_inverse=True)
    sums = torch.zeros(len(tokens), dtype=by_character.dtype).index_add_(0, place, by_character)
    return scores[tokens], sums / place.bincount()


def _characters(row: DefectRow, scores: Tensor) -> list[tuple[int, Tensor]]:
    """Token and score of each character that is no white space, in order.

    A character of several bytes may lie in several tokens: the last one counts.
    """
    text = row.fields["rejected"]
    holder = {
        place: token for token, (start, end) in enumerate(row.places) for place in range(start, end)
    }
    return [
        (holder[place], scores[holder[place]])
        for place, character in enumerate(text)
        if not character.isspace()
    ]


def agreement(scores: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float]]:
    """Mean rank correlation between each two estimators, row by row."""
    table: dict[str, dict[str, float]] = {name: {name: 1.0} for name in scores}
    for first, second in combinations(scores, 2):
        pairs = zip(scores[first], scores[second], strict=True)
        each = [rank_correlation(a, b) for a, b in pairs]
        table[first][second] = table[second][first] = sum(each) / len(each)
    return table
