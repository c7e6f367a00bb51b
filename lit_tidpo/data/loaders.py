"""The training loader, which resumes in the middle of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_tidpo.data.examples import PairStream
from lit_tidpo.data.sampling import ResumableSampler
from lit_tidpo.structures import ResponseBatch


class ResumableLoader(DataLoader[Any]):
    """A loader that starts where the Trainer's progress stands, also after a restart.

    Attributes:
        trainer: The Trainer whose epoch and batch count to follow; None starts at the beginning.
        lookahead: Batches in a window, whose first one announces the others.
    """

    trainer: Trainer | None = None
    lookahead: int = 1

    def __iter__(self) -> Any:
        # A generator looks at the progress when the first batch is asked for: the Trainer may make
        # the iterator before it restores a checkpoint.
        batches = 0
        if self.trainer is not None:
            epoch, batches = training_position(self.trainer)
            if isinstance(self.dataset, PairStream):
                assert self.batch_size is not None
                self.dataset.set_epoch(epoch)
                self.dataset.skip_pairs(batches * self.batch_size)
            elif isinstance(self.sampler, ResumableSampler):
                self.sampler.set_epoch(epoch)
                self.sampler.skip_batches(batches)
        yield from _windows(super().__iter__(), self.lookahead, start=batches)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is in the Trainer's progress. Tells Lightning that this resumes."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


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


def training_position(trainer: Trainer) -> tuple[int, int]:
    """Where training goes on.

    Args:
        trainer: The Trainer, possibly restored from a checkpoint.

    Returns:
        The epoch, and the number of its batches that each rank has trained on.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    if not batches.is_last_batch:
        return epochs.processed, batches.current.processed
    # A checkpoint of the last batch may be from before or after the end of its epoch was counted.
    return epochs.processed + (epochs.started > epochs.processed), 0
