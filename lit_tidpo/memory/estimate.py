"""What each device of a run holds, and how many pairs fit."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lit_tidpo.errors import InputError
from lit_tidpo.memory.rows import PairLengths, pairs_batch
from lit_tidpo.memory.sharing import SHARDED, gathered, sharing
from lit_tidpo.memory.step import DrySteps, asks_for_anchors
from lit_tidpo.structures import ResponseBatch

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

_CPU_LIBRARIES = 85 * 10**6

_MOST_PAIRS = 2**16
_PROBED_TOKENS = 1024
"""Tokens of the first batch whose size is looked at."""


def libraries_on(device: str) -> int:
    """Bytes that a process takes for a run beside its tensors, whatever is trained.

    On a CPU buffers of libraries, and pieces that the C library keeps: the mean of six runs of
    ``benchmarks/memory.py``. On a GPU nothing was measured.

    Args:
        device: Kind of device.
    """
    return _CPU_LIBRARIES if device == "cpu" else 0


@dataclass(frozen=True)
class Estimator:
    """Estimates of a module's steps on so many devices.

    Attributes:
        steps: Runs them without numbers.
        strategy: Name of the strategy, a key of :data:`lit_tidpo.memory.sharing.SHARING`.
        devices: Number of devices.
        libraries: Bytes that a process takes beside its tensors.
    """

    steps: DrySteps
    strategy: str = "auto"
    devices: int = 1
    libraries: int = 0

    def held(self, pairs: Sequence[PairLengths]) -> dict[str, int]:
        """Bytes on each device by what they are for, at the moment when they are the most.

        Args:
            pairs: The pairs of a batch of one device.
        """
        batch = pairs_batch(pairs)
        passes, update = self._moments(batch)
        most = max(passes, update, key=lambda held: sum(held.values()))
        if most is passes and asks_for_anchors(self.steps.module):
            alone = self.steps.step(batch, with_anchors=False).passes
            for name in ("activations", "logits"):
                most["anchors"] += max(0, most[name] - alone[name])
                most[name] = min(most[name], alone[name])
        return {**{name: most[name] for name in LINES}, "libraries": self.libraries}

    def _moments(self, batch: ResponseBatch) -> tuple[Counter[str], Counter[str]]:
        """What is held at the worst moment of the passes, and of the update."""
        found = self.steps.step(batch)
        passes, update = self._of_device(found.passes), self._of_device(found.update)
        passes[SHARDED] = self._gathered()
        return passes, update

    def most_pairs(self, pair: PairLengths, memory: float) -> int:
        """Pairs of these lengths that a batch of one device can have at the most; 0 if none fits.

        Batches are doubled until they hold too much, or grow as they did before: then the rest is
        taken to grow so, too.

        Args:
            pair: Their lengths.
            memory: Bytes of a device.
        """
        count, last, size = max(1, _PROBED_TOKENS // pair.tokens), 0, 0
        growth = before = 0.0
        while growth <= 0 or abs(growth - before) > 0.02 * growth:
            more = self.total([pair] * count)
            if more > memory:
                within = range(last + 1, count)
                return last + bisect_right(within, memory, key=lambda n: self.total([pair] * n))
            if count > _MOST_PAIRS:
                raise InputError(f"{count} pairs fit: expected less memory, for which that matters")
            growth, before = (more - size) / (count - last) if last else 0.0, growth
            count, last, size = 2 * count, count, more
        return last + int((memory - size) / growth)

    def total(self, pairs: Sequence[PairLengths]) -> int:
        """Bytes on each device together, at the moment when they are the most."""
        held = self._moments(pairs_batch(pairs))
        return self.libraries + max(sum(moment.values()) for moment in held)

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
