"""What scores follow other than the defect: position, frequency, embedding, length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from benchmarks.evidence.defects.measures import Interval, clustered, rank_correlation
from benchmarks.evidence.defects.rows import DefectRow


def token_counts(rows: Sequence[DefectRow]) -> Counter[int]:
    """How often each token stands in the responses of some rows."""
    return Counter(token for row in rows for token in row.chosen)


def biases(
    scores: Sequence[Tensor], rows: Sequence[DefectRow], policy: nn.Module, counts: Counter[int]
) -> dict[str, Interval]:
    """Rank correlations of scores with what should not matter.

    Args:
        scores: Scores of the rows' responses.
        rows: The rows.
        policy: Its embeddings' norms are looked at.
        counts: Occurrences of each token in the training data.

    Returns:
        ``position``, ``frequency`` and ``embedding_norm``: Spearman's correlation with a token's
        place, its count in training, and the norm of its embedding, within rows. ``last_share``:
        the last token's score over the sum of its row, times the length: 1 is a fair share.
        ``length``: Spearman's correlation over rows between a response's length and its largest
        score relative to the mean; its interval is over drawn rows.
    """
    norms = policy.get_input_embeddings().weight.detach().norm(dim=-1)
    modules = [row.module for row in rows]
    ids = [torch.tensor(row.rejected) for row in rows]
    features = {
        "position": [torch.arange(len(tokens)) for tokens in ids],
        "frequency": [torch.tensor([counts[token] for token in row.rejected]) for row in rows],
        "embedding_norm": [norms[tokens] for tokens in ids],
    }
    result = {
        name: clustered(
            [rank_correlation(a, b) for a, b in zip(scores, values, strict=True)], modules
        )
        for name, values in features.items()
    }
    shares = [_last_share(values) for values in scores]
    return {**result, "last_share": clustered(shares, modules), "length": _length(scores)}


def _last_share(values: Tensor) -> float:
    total = float(values.sum())
    return float(values[-1]) / total * len(values) if total > 0 else 1.0


def _length(scores: Sequence[Tensor]) -> Interval:
    lengths = torch.tensor([len(values) for values in scores])
    peaks = torch.stack([values.max() / values.mean().clamp(min=1e-30) for values in scores])
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(200):
        chosen = torch.randint(len(scores), (len(scores),), generator=generator)
        drawn.append(rank_correlation(lengths[chosen], peaks[chosen]))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(rank_correlation(lengths, peaks), low, high)


def mean_length(rows: Sequence[DefectRow]) -> float:
    """Mean number of response tokens."""
    return fmean(len(row.rejected) for row in rows)
