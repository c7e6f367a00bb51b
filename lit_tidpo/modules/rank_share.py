"""Walking a whole data set before a run, each rank its part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from lit_tidpo.errors import InputError
from lit_tidpo.modules.runtime import data_share
from lit_tidpo.structures import ResponseBatch


def rank_share(loader: Any, trainer: Trainer, option: str) -> DataLoader[Any]:
    """A loader of this rank's part of a data set, in order; all ranks get as many batches.

    Args:
        loader: Batches the data set, in whatever order.
        trainer: Knows the ranks.
        option: The setting that asks for it, for messages.

    Raises:
        InputError: If the data have no length.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise InputError(
            f"{option} needs a DataLoader whose data can be walked before the run, "
            f"got a stream ({type(getattr(loader, 'dataset', loader)).__name__}): set "
            f"data.streaming=false, or do without {option}"
        )
    size, share = len(cast(Sized, loader.dataset)), data_share(trainer)
    world = share["num_replicas"]
    end = math.ceil(size / world) * world
    batch_size = loader.batch_size
    if batch_size is None and loader.batch_sampler is not None:  # a batch sampler of the user's
        batch_size = getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        sampler=[position % size for position in range(share["rank"], end, world)],
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        generator=torch.Generator(),  # the global one is training's
    )


def response_batches(share: DataLoader[Any], option: str) -> Iterator[ResponseBatch]:
    """The batches of a loader.

    Args:
        share: What :func:`rank_share` returned.
        option: The setting that asks for it, for messages.

    Raises:
        InputError: If it gives anything else than batches of responses.
    """
    for batch in share:
        if not isinstance(batch, ResponseBatch):
            raise InputError(
                f"{option}: the loader gives {type(batch).__name__}, expected ResponseBatch; let "
                "its collate_fn make one"
            )
        yield batch
