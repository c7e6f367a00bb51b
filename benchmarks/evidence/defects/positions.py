"""Baselines that know nothing but where a token stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.evidence.defects.measures import auroc
from benchmarks.evidence.defects.rows import DefectRow
from lit_tidpo.functional.importance import gaussian_prior

Profile = Callable[[int], Tensor]
"""Scores of the tokens of a response, from its length alone."""

_BINS = 40


def gaussian(length: int) -> Tensor:
    """The paper's prior (Eq. 7)."""
    return gaussian_prior(torch.ones(1, length, dtype=torch.bool))[0]


def last_token(length: int) -> Tensor:
    """The later, the higher."""
    return torch.arange(length).float()


def learnt_profile(rows: Sequence[DefectRow]) -> tuple[str, Profile]:
    """The best profile by position that other rows give.

    Rates of defects over 40 bins of the place in the response, or over the first or last 40 places;
    of the three, the one that ranks best on the rows that it was learnt from.

    Args:
        rows: Rows of another split than it is measured on.

    Returns:
        The name of the kind and the profile.
    """
    kinds: dict[str, Callable[[int], Tensor]] = {
        "relative": lambda length: torch.arange(length) * _BINS // length,
        "from_start": lambda length: torch.arange(length).clamp(max=_BINS - 1),
        "from_end": lambda length: torch.arange(length).flip(0).clamp(max=_BINS - 1),
    }
    profiles = {name: _profile(rows, bins) for name, bins in kinds.items()}
    quality = {
        name: fmean(auroc(profile(len(row.marked)), row.marked) for row in rows)
        for name, profile in profiles.items()
    }
    best = max(quality, key=lambda name: quality[name])
    return best, profiles[best]


def _profile(rows: Sequence[DefectRow], bins: Callable[[int], Tensor]) -> Profile:
    marked, seen = torch.zeros(_BINS), torch.zeros(_BINS)
    for row in rows:
        places = bins(len(row.marked))
        marked.index_add_(0, places, row.marked.float())
        seen.index_add_(0, places, torch.ones(len(places)))
    rate = marked / seen.clamp(min=1)
    return lambda length: rate[bins(length)]
