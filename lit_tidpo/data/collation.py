"""Tokenised pairs to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_tidpo.errors import InputError
from lit_tidpo.structures import ResponseBatch

ROLES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairCollator:
    """Pad tokenised pairs on the right and stack them.

    Attributes:
        pad_id: Token id of the padding. Its value does not matter: masks come from the lengths.
        multiple: The padded length is a multiple of this.
    """

    pad_id: int = 0
    multiple: int = 1

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> ResponseBatch:
        """Make a batch: first the chosen rows of all pairs, then the rejected rows.

        Args:
            pairs: Tokenised pairs.

        Returns:
            The batch, with ``2 * len(pairs)`` rows.

        Raises:
            InputError: If only some of the pairs have supplied weights.
        """
        rows = [(pair["prompt_ids"], pair[f"{role}_ids"]) for role in ROLES for pair in pairs]
        lengths = [len(prompt) + len(response) for prompt, response in rows]
        width = -(-max(lengths) // self.multiple) * self.multiple
        return ResponseBatch(
            input_ids=torch.tensor(
                [
                    [*prompt, *response, *[self.pad_id] * (width - length)]
                    for (prompt, response), length in zip(rows, lengths, strict=True)
                ]
            ),
            prompt_lengths=torch.tensor([len(prompt) for prompt, _ in rows]),
            lengths=torch.tensor(lengths),
            roles=ROLES,
            index=torch.tensor([pair["index"] for pair in pairs]),
            counted=torch.tensor([pair.get("counted", True) for pair in pairs]),
            supplied_weights=_weights(pairs, width),
        )


def _weights(pairs: Sequence[Mapping[str, Any]], width: int) -> torch.Tensor | None:
    given = [pair[f"{role}_weights"] for role in ROLES for pair in pairs]
    if all(values is None for values in given):
        return None
    if any(values is None for values in given):
        raise InputError(
            f"some of the pairs {[pair['index'] for pair in pairs]} have token weights, others "
            "have none: give chosen_weights and rejected_weights in every row or in none"
        )
    weights = torch.zeros(len(given), width)
    starts = [len(pair["prompt_ids"]) for _ in ROLES for pair in pairs]
    for row, start, values in zip(weights, starts, given, strict=True):
        row[start : start + len(values)] = torch.tensor(values)
    return weights
