"""The order of the rows: reproducible, shared between ranks, resumable."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence, Sized

from torch.utils.data import DistributedSampler

# Batches that are sorted by length together: enough for like lengths, few enough to stay random.
_GROUPED_BATCHES = 50


class ResumableSampler(DistributedSampler[int]):
    """Share the positions of a data set between ranks, in an order given by seed and epoch alone.

    The global batch ``k`` of ``batch_size * num_replicas`` positions is dealt to the ranks one by
    one, so that it holds the same rows on any number of ranks that divides it.

    A position that only fills up the last round is yielded as ``-1 - position``, so that its row
    can be left out of what is counted.

    Args:
        dataset: The data, for their length.
        num_replicas: Number of ranks.
        rank: This rank.
        batch_size: Rows per batch and rank.
        shuffle: Shuffle, differently in each epoch; otherwise the order is always the same.
        seed: Seed of the order.
        drop_last: Leave out the incomplete last global batch, rather than fill up its last round.
        lengths: Tokens of each row; with them, batches hold rows of like length.

    Example:
        >>> sampler = ResumableSampler(range(3), 2, rank=1, batch_size=1, shuffle=False)
        >>> list(sampler)
        [1, -1]
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int,
        rank: int,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]  # only its length is used
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.batch_size = batch_size
        self.lengths = lengths
        self._skipped_rows = 0
        if drop_last:
            self.num_samples = len(dataset) // self._global_batch * batch_size
        else:
            self.num_samples = math.ceil(len(dataset) / num_replicas)
        self.total_size = self.num_samples * num_replicas

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self.num_replicas

    def skip_rows(self, count: int) -> None:
        """Leave out the first rows of the order of all ranks, in the next iteration only.

        Args:
            count: Number of rows.
        """
        self._skipped_rows = count

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        left = order[self._skipped_rows :]
        self._skipped_rows = 0
        if self.drop_last:
            left = left[: len(left) // self._global_batch * self._global_batch]
        missing = -len(left) % self.num_replicas
        repeats = order * math.ceil(missing / max(len(order), 1))
        left += [-1 - position for position in repeats[:missing]]
        return iter(left[self.rank :: self.num_replicas])

    def _order(self) -> list[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        # Not their sum: the orders of seed 1 would be those of seed 0, an epoch later.
        generator = random.Random(f"{self.seed} {self.epoch if self.shuffle else 0}")
        order = generator.sample(range(size), size) if self.shuffle else list(range(size))
        if self.lengths is None:
            return order
        return self._grouped(order, self.lengths, generator)

    def _grouped(
        self, order: list[int], lengths: Sequence[int], generator: random.Random
    ) -> list[int]:
        """Sort by length inside large random groups, then shuffle the full global batches."""
        batch, group = self._global_batch, self._global_batch * _GROUPED_BATCHES
        full = len(order) // batch * batch
        sorted_order = [
            position
            for start in range(0, full, group)
            for position in sorted(order[start : min(start + group, full)], key=lengths.__getitem__)
        ]
        starts = generator.sample(range(0, full, batch), full // batch)
        return [
            *(position for start in starts for position in sorted_order[start : start + batch]),
            *order[full:],
        ]
