"""How much of each token can be carried over to the other response."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.transport import unbalanced_transport
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class OptimalTransportImportance(ImportanceEstimator):
    """Mass of each token that unbalanced optimal transport carries over (OTPO: arXiv 2505.18720).

    Each token of both responses has the mass 1; carrying it from one to the other costs the
    distance of their last hidden states, in units of the pair's largest where that is above 1.
    Tokens that find a like one in the other response score high, those of what only one of them
    says low. Scores of both responses sum to the tokens of the shorter one, which
    ``model.weight_scale: none`` keeps as OTPO does. Among several responses each is compared with
    each other one of its prompt, and the mean is taken; one alone has ones.

    Args:
        smoothing: Factor of the plan's entropy, above 0.
        mass_penalty: Factor of the divergence of what is carried from what is there, above 0.
        model: Whose hidden states: the current ``policy``, the frozen ``reference``, or a further
            model.
    """

    looks_at = "group"

    def __init__(
        self, smoothing: float = 0.1, mass_penalty: float = 0.2, model: str = "policy"
    ) -> None:
        check_positive("smoothing", smoothing)
        check_positive("mass_penalty", mass_penalty)
        self.smoothing = smoothing
        self.mass_penalty = mass_penalty
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states of the chosen model."""
        return frozenset({f"{self.model}.hidden"})

    def scores(self, results: Results) -> Tensor:
        """Mass that is carried, zero off the response, ``[N, T]``."""
        hidden, mask = results[f"{self.model}.hidden"].detach().float(), results.mask
        sums = torch.zeros(mask.shape, device=mask.device)
        counts = [0] * len(mask)
        for pair in results.batch.pairs_of_rows():
            first, second = (hidden[row][mask[row]] for row in pair)
            plan = self._plan(first, second)
            for dim, row in enumerate(pair):
                sums[row, mask[row]] += plan.sum(1 - dim)
                counts[row] += 1
        means = sums / sums.new_tensor(counts).clamp(min=1).unsqueeze(-1)
        return means.where(sums.new_tensor(counts).unsqueeze(-1) > 0, mask.to(means))

    def _plan(self, first: Tensor, second: Tensor) -> Tensor:
        """Plan between the states of two responses, of as much mass as the shorter one has."""
        cost = torch.cdist(first, second)
        cost = cost / cost.max().clamp(min=1)
        plan = unbalanced_transport(cost, self.smoothing, self.mass_penalty)
        return plan * (min(plan.shape) / plan.sum())
