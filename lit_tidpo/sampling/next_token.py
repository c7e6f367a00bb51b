"""One token from the logits of all: temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_tidpo.sampling.anchor_options import AnchorOptions


@dataclass(frozen=True)
class NextToken:
    """Samples the next token, of which ``generate`` then takes the only one that is left.

    Top-k, then top-p among those k. ``generate`` would draw a number for each entry of the
    vocabulary and sort it for top-p, at every token.

    Attributes:
        options: How to sample.
    """

    options: AnchorOptions

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave one token in, by the logits of all, ``[N, V]`` both."""
        size = scores.shape[-1]
        top, tokens = scores.topk(min(self.options.top_k or size, size))
        shares = (top / self.options.temperature).softmax(-1, dtype=torch.float32)
        if self.options.top_p < 1:
            # A token stays while those before it have less than top_p; the first always does.
            shares = shares.masked_fill(_before(shares) >= self.options.top_p, 0.0)
        choice = tokens.gather(-1, _drawn(shares))
        return torch.full_like(scores, -torch.inf).scatter(-1, choice, 0.0)


def _drawn(shares: Tensor) -> Tensor:
    """A place of each row, ``[N, 1]``: what ``torch.multinomial`` draws.

    That one would wait for the device at every token, to check the shares.
    """
    return (shares / torch.empty_like(shares).exponential_()).argmax(-1, keepdim=True)


def _before(shares: Tensor) -> Tensor:
    """Total of the shares before each one; a GPU adds up in any order, where that may be."""
    place = "cpu" if torch.are_deterministic_algorithms_enabled() else shares.device
    moved = shares.to(place)
    return (moved.cumsum(-1) - moved).to(shares.device)
