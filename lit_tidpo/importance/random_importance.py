"""Random scores: the control of the paper's ablation."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class RandomImportance(ImportanceEstimator):
    """Uniform random scores, the ablation "random weight" (arXiv 2505.19653, Table 2).

    The scores of an example are the same whenever it is seen: they hang on the seed and the tokens
    of its row, not on the state of any generator.

    Args:
        seed: Another seed draws other scores.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, results: Results) -> Tensor:
        """Uniform in [0, 1), ``[N, T]``."""
        batch = results.batch
        rows = [
            self._draw(row[:length].tolist(), len(row))
            for row, length in zip(batch.input_ids, batch.lengths.tolist(), strict=True)
        ]
        return torch.stack(rows).to(results["policy.logps"])

    def _draw(self, tokens: list[int], width: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *tokens)) % 2**63)
        scores = torch.zeros(width)
        scores[: len(tokens)] = torch.rand(len(tokens), generator=generator)
        return scores
