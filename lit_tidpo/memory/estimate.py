"""What each device of a run holds, and how many pairs fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_tidpo.errors import InputError
from lit_tidpo.memory.rows import PairLengths, pairs_batch
from lit_tidpo.memory.sharing import SHARDED, gathered, sharing
from lit_tidpo.memory.step import DrySteps, asks_for_anchors

LINES = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "reference",
    "anchors",
    SHARDED,
)
"""What memory is for, in the order of the table."""

_MOST_PAIRS = 2**16


@dataclass(frozen=True)
class Estimator:
    """Estimates of a module's steps on so many devices.

    Attributes:
        steps: Runs them without numbers.
        strategy: Name of the strategy, a key of :data:`lit_tidpo.memory.sharing.SHARING`.
        devices: Number of devices.
    """

    steps: DrySteps
    strategy: str = "auto"
    devices: int = 1

    def held(self, pairs: Sequence[PairLengths]) -> dict[str, int]:
        """Bytes on each device by what they are for, at the moment when they are the most.

        Args:
            pairs: The pairs of a batch of one device.
        """
        batch = pairs_batch(pairs)
        found = self.steps.step(batch)
        passes, update = self._of_device(found.passes), self._of_device(found.update)
        passes[SHARDED] = self._gathered()
        most = max(passes, update, key=lambda held: sum(held.values()))
        if most is passes and asks_for_anchors(self.steps.module):
            alone = self.steps.step(batch, with_anchors=False).passes
            for name in ("activations", "logits"):
                most["anchors"] += max(0, most[name] - alone[name])
                most[name] = min(most[name], alone[name])
        return {name: most[name] for name in LINES}

    def total(self, pairs: Sequence[PairLengths]) -> int:
        """Bytes on each device together."""
        return sum(self.held(pairs).values())

    def most_pairs(self, pair: PairLengths, memory: float) -> int:
        """Pairs of these lengths that a batch of one device can have at the most; 0 if none fits.

        Args:
            pair: Their lengths.
            memory: Bytes of a device.
        """
        return largest(lambda count: self.total([pair] * count), memory)

    def _of_device(self, held: Counter[str]) -> Counter[str]:
        """What one device holds of what one alone would hold."""
        shares, found = sharing(self.strategy, self.devices), Counter(held)
        divided = {
            "parameters": shares.parameters,
            "reference": shares.parameters,
            "gradients": shares.gradients,
            "optimizer": shares.optimizer,
        }
        for name, is_divided in divided.items():
            if is_divided:
                found[name] = -(-found[name] // self.devices)
        if shares.buckets:
            found["gradients"] += self.steps.gradient_bytes
        return found

    def _gathered(self) -> int:
        if not sharing(self.strategy, self.devices).parameters:
            return 0
        others = sum(gathered(model, trains=False) for model in self.steps.others)
        return gathered(self.steps.policy, trains=True) + others


def largest(size: Callable[[int], int], bound: float) -> int:
    """The largest number, from 0, of a size within a bound; sizes grow about evenly.

    Args:
        size: Size of a number from 1 on.
        bound: What it may be at the most.

    Raises:
        InputError: If nothing reaches the bound.

    Example:
        >>> largest(lambda count: 10 + 3 * count, 100)
        30
    """
    low, high, slope = 0, 0, 0.0
    below, guess = 0, 1
    while high == 0 or high - low > 1:
        found = size(guess)
        if found <= bound:
            slope, below, low = (found - below) / (guess - low), found, guess
        else:
            high = guess
            if low == 0 and high == 1:
                return 0
        if low >= _MOST_PAIRS:
            raise InputError(f"{low} pairs fit: expected less memory, for which that matters")
        ahead = low + max(1, int((bound - below) / slope)) if slope and low > 1 else 2 * low
        guess = min(ahead, 8 * low) if high == 0 else min(max(ahead, low + 1), high - 1)
        guess = max(guess, low + 1)
    return low
