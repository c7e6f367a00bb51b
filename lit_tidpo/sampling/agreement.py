"""Whether a policy generates from the probabilities of its plain passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_tidpo.models.proofs import rounding
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import vocabulary_size


class Forced:
    """Lets ``generate`` take given tokens, one at each step, and keeps the logits that there were.

    Args:
        tokens: To take.

    Attributes:
        logits: Of each step, ``[N, V]``.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave one token in."""
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[len(self.logits)]] = 0.0
        self.logits.append(scores.float().clone())
        return forced


def agrees(
    policy: Any, generate: Callable[[Any, Tensor, Tensor, Forced], None], pads: bool
) -> bool:
    """Whether a few tokens get the logits in generation that they get in plain passes.

    Args:
        policy: The policy.
        generate: Generates from the first tokens of rows: ids, ``[N, T]``, lengths, ``[N]``.
        pads: Whether contexts of several lengths are generated from together.
    """
    device = next(policy.parameters()).device
    ids = torch.arange(1, 25, device=device).mul(7919).remainder(vocabulary_size(policy))
    given, new = ids[:21].view(3, 7), ids[21:]
    lengths = torch.tensor([7, 4, 7], device=device)
    error = scale = 0.0
    for group in [[0, 1, 2]] if pads else [[0, 2], [1]]:
        forced = Forced(new.tolist())
        generate(policy, given[group], lengths[group], forced)
        for row, logits in zip(group, torch.stack(forced.logits, 1), strict=True):
            whole = torch.cat([given[row, : lengths[row]], new[:-1]]).unsqueeze(0)
            with torch.no_grad(), evaluating(policy):
                plain = policy(input_ids=whole, use_cache=False).logits[0, -len(new) :].float()
            error = max(error, float((logits - plain).abs().max()))
            scale = max(scale, float(plain.abs().max()))
    return error <= scale * rounding(policy)
