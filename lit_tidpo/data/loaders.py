"""The training loader, which resumes in the middle of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lit_tidpo.data.examples import PairStream
from lit_tidpo.data.sampling import ResumableSampler
from lit_tidpo.structures import ResponseBatch


@dataclass(frozen=True)
class Position:
    """Where training stands in the data, as a checkpoint keeps it.

    Attributes:
        epoch: Number of the epoch, from 0.
        rows: Rows of it that all ranks together have trained on.
        order: What the order of the rows depends on.
    """

    epoch: int
    rows: int
    order: dict[str, Any]

    def within(self, order: dict[str, Any]) -> Position:
        """The position in a run whose order may be another one.

        Where it is, rows that were trained on cannot be told from the others: the epoch starts
        anew, with a warning.
        """
        differing = sorted(name for name, value in order.items() if self.order.get(name) != value)
        if not self.rows or not differing:
            return dataclasses.replace(self, order=order)
        changes = ", ".join(f"{n} was {self.order.get(n)!r}, is {order[n]!r}" for n in differing)
        rank_zero_warn(
            f"the checkpoint stands at row {self.rows} of epoch {self.epoch}, but the order of the "
            f"rows is another one ({changes}): epoch {self.epoch} starts anew"
        )
        return Position(self.epoch, 0, order)


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on where a checkpoint stood: rows are counted, not batches.

    Attributes:
        trainer: The Trainer whose epochs and batches to follow; None starts at the beginning.
        lookahead: Batches in a window, whose first one announces the others.
        global_batch: Rows in a batch of all ranks.
        order: What the order of the rows depends on.
        resumed: Where the next iteration starts; None starts the Trainer's current epoch.
    """

    trainer: Trainer | None = None
    lookahead: int = 1
    global_batch: int = 1
    order: dict[str, Any] | None = None
    resumed: Position | None = None
    # Of the current iteration: the epoch, and rows and batches of it that came before.
    _epoch, _rows_before, _batches_before = 0, 0, 0

    def __iter__(self) -> Any:
        # A generator looks at the progress when the first batch is asked for: the Trainer may make
        # the iterator before it restores a checkpoint.
        start, self.resumed = self.resumed, None
        if self.trainer is not None:
            self._epoch = self.trainer.current_epoch if start is None else start.epoch
            self._rows_before = 0 if start is None else start.rows
            self._batches_before = self._rows_before // self.global_batch
            data = self.dataset if isinstance(self.dataset, PairStream) else self.sampler
            if isinstance(data, PairStream | ResumableSampler):  # overfit_batches brings its own
                data.set_epoch(self._epoch)
                data.skip_rows(self._rows_before)
        yield from _windows(super().__iter__(), self.lookahead, start=self._batches_before)

    def position(self) -> Position:
        """Where training stands now: what was trained on counts, not what was read ahead."""
        assert self.trainer is not None
        assert self.order is not None
        if self.resumed is not None:
            return self.resumed
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        if batches.is_last_batch:
            return Position(self._epoch + 1, 0, self.order)
        read = batches.current.processed - self._batches_before
        return Position(self._epoch, self._rows_before + read * self.global_batch, self.order)

    def resume(self, position: Position) -> None:
        """Let the next iteration start at a position, and the Trainer count from there.

        Lightning counts batches, and a batch may have another size than before; and it takes an
        epoch that ``max_steps`` or ``max_time`` has stopped for a whole one.

        Args:
            position: Of a checkpoint that the Trainer has restored or is about to.
        """
        self.resumed = position
        assert self.trainer is not None
        loop: Any = self.trainer.fit_loop
        batches = loop.epoch_loop.batch_progress
        if batches.is_last_batch:
            if batches.current.processed and not isinstance(self.dataset, PairStream):
                _shift(batches.current, len(self) - batches.current.processed)
            return
        _shift(batches.current, position.rows // self.global_batch - batches.current.processed)
        stopped = loop.epoch_progress.current.processed - position.epoch
        if stopped > 0:
            for counts in (loop.epoch_progress.current, loop.epoch_progress.total):
                counts.completed = counts.processed = counts.processed - stopped

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. Tells Lightning that this resumes."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


def _shift(counts: Any, batches: int) -> None:
    """Add to each of Lightning's counts of batches."""
    for name in ("ready", "started", "processed", "completed"):
        setattr(counts, name, getattr(counts, name) + batches)


def _windows(batches: Iterator[ResponseBatch], size: int, start: int) -> Iterator[ResponseBatch]:
    """Read whole windows, and let the first batch of each announce the others.

    Windows are counted from the start of the epoch. A window that was begun before a restart
    announces nothing again, so that the run goes on as if it had not been interrupted.

    Args:
        batches: Batches of an epoch, from its batch ``start`` on.
        size: Batches in a window.
        start: Batches that were read before.
    """
    yield from islice(batches, -start % size)
    while window := list(islice(batches, size)):
        first = [batch.role(batch.roles[0]) for batch in window[1:]]
        upcoming = tuple(dataclasses.replace(rows, supplied_weights=None) for rows in first)
        yield dataclasses.replace(window[0], upcoming=upcoming)
        yield from window[1:]
