"""The training loader, which resumes in the middle of an epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_tidpo.data.examples import PairStream
from lit_tidpo.data.sampling import ResumableSampler


class ResumableLoader(DataLoader[Any]):
    """A loader that starts where the Trainer's progress stands, also after a restart.

    Attributes:
        trainer: The Trainer whose epoch and batch count to follow; None starts at the beginning.
    """

    trainer: Trainer | None = None

    def __iter__(self) -> Any:
        # A generator looks at the progress when the first batch is asked for: the Trainer may make
        # the iterator before it restores a checkpoint.
        if self.trainer is not None:
            epoch, batches = training_position(self.trainer)
            if isinstance(self.dataset, PairStream):
                assert self.batch_size is not None
                self.dataset.set_epoch(epoch)
                self.dataset.skip_pairs(batches * self.batch_size)
            elif isinstance(self.sampler, ResumableSampler):
                self.sampler.set_epoch(epoch)
                self.sampler.skip_batches(batches)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is in the Trainer's progress. Tells Lightning that this resumes."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


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
