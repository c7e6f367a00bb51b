"""Loaders of the splits of a data set, which go on where a checkpoint stood."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, get_args

from datasets import IterableDataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import cuda
from torch.utils.data import DataLoader

from lit_tidpo.data.collation import RowsCollator
from lit_tidpo.data.examples import PairDataset, PairStream
from lit_tidpo.data.loaders import Position, ResumableLoader
from lit_tidpo.data.loading import read_on
from lit_tidpo.data.mixing import MixedSource
from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.sampling import ResumableSampler
from lit_tidpo.data.shapes import SINGLE, sides_of_columns
from lit_tidpo.data.splits import SplitSource
from lit_tidpo.data.tokenised import sides_of
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SplitLoaders(LightningDataModule, ABC):
    """A data module's loaders; which splits there are and what they hold, a subclass says.

    Attributes:
        source: Where the splits come from.
        reports: What became of the rows of each split.
    """

    source: SplitSource | MixedSource
    test_split: str
    predict_split: str
    invalid_rows: InvalidRows
    batch_size: int
    eval_batch_size: int | None
    drop_last: bool
    group_by_length: bool
    pad_to_multiple: int
    lookahead: int
    num_workers: int
    processes: int
    shuffle_buffer: int

    def __init__(self) -> None:
        super().__init__()
        self.reports: dict[str, PreparationReport] = {}
        self._rows: dict[str, Any] = {}
        self._resumed: Position | None = None

    @property
    @abstractmethod
    def pair_tokenizer(self) -> PairTokenizer:
        """What turns rows into token ids."""

    @property
    def is_paired(self) -> bool:
        """Whether the rows that were set up are pairs, rather than single responses."""
        found = {_sides(rows) for rows in self._rows.values()}
        if len(found) > 1:
            raise InputError(
                f"some of the splits {sorted(self._rows)} hold pairs, others single responses: "
                "name splits of one kind"
            )
        return found != {SINGLE}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        return self.pair_tokenizer.tokenizer

    def _check(self) -> None:
        least = {"batch_size": 1, "eval_batch_size": 1, "pad_to_multiple": 1, "num_workers": 0}
        for name, bound in {**least, "shuffle_buffer": 1, "lookahead": 1, "processes": 1}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{name} must be at least {bound}; got {value}")
        if self.invalid_rows not in get_args(InvalidRows):
            raise InputError(
                f"invalid_rows must be one of {get_args(InvalidRows)}; got {self.invalid_rows!r}"
            )
        if self.shuffle_buffer != 1000 and not self.source.streaming:
            raise InputError(
                f"shuffle_buffer={self.shuffle_buffer} has no effect without streaming, which "
                "shuffles all rows: leave it out, or set streaming=True"
            )
        if self.source.streaming and self.processes > 1:
            raise InputError(
                f"processes={self.processes} has no effect with streaming, which tokenises rows as "
                "they are read: leave it out"
            )
        if self.source.streaming and self.group_by_length:
            raise InputError(
                "group_by_length=True does not go with streaming, because a stream's lengths are "
                "not known: set one of them to False"
            )
        if self.source.streaming and self.num_workers > 1:
            raise InputError(
                f"num_workers={self.num_workers} does not go with streaming, because a stream has "
                "one order: set it to 0 or 1"
            )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled training batches.

        Raises:
            InputError: If there are fewer pairs than a batch and ``drop_last``.
        """
        loader = self._loader(self.source.train_split, train=True)
        if not self.source.streaming and len(loader) == 0:
            raise InputError(
                f"split {self.source.train_split!r} has fewer pairs than a batch of all devices "
                f"(batch_size={self.batch_size} each), and drop_last=True: lower batch_size or set "
                "drop_last=False"
            )
        if self.trainer is not None and self._resumed is not None:
            loader.resume(self._resumed.within(loader.order or {}))
            self._resumed = None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data; the Trainer puts it into checkpoints."""
        # Not what train_dataloader() gave: Lightning may have made another one of it.
        loader = None if self.trainer is None else self.trainer.train_dataloader
        if not isinstance(loader, ResumableLoader):
            return {}
        return {"position": dataclasses.asdict(loader.position())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader go on from there."""
        if "position" in state_dict:
            self._resumed = Position(**state_dict["position"])

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation batches; none when fitting data without a validation split."""
        split = self.source.validation_split
        if split in self._rows:
            return self._loader(split)
        rank_zero_warn(
            f"the data at {self.source.label!r} have no split {split!r}, so fitting goes without "
            "validation: name a validation_split, or set validation_fraction to hold one out"
        )
        return []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self._loader(self.test_split)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches to predict."""
        return self._loader(self.predict_split)

    def _loader(self, split: str, train: bool = False) -> ResumableLoader:
        batch_size = self.batch_size if train else self.eval_batch_size or self.batch_size
        drop_last = train and self.drop_last
        pairs: PairStream | PairDataset
        sampler = None
        if self.source.streaming:
            pairs = self._stream(split, train, drop_last)
        else:
            pairs = PairDataset(self._rows[split])
            sampler = self._sampler(pairs, batch_size, train, drop_last)
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        loader = ResumableLoader(
            pairs,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=RowsCollator(
                end if pad is None else pad,
                self.pad_to_multiple,
                self.pair_tokenizer.options.max_length,
            ),
            pin_memory=cuda.is_available(),
        )
        loader.trainer = self.trainer if train else None
        loader.lookahead = self.lookahead if train else 1
        loader.global_batch = batch_size * self._share["num_replicas"]
        loader.order = self._order(split, loader.global_batch)
        return loader

    def _order(self, split: str, global_batch: int) -> dict[str, Any]:
        """What the order of a training split depends on, by the names of the options."""
        streaming = self.source.streaming
        return {
            "source": self.source.label,
            "split": split,
            "rows": None if streaming else len(self._rows[split]),
            "seed": self.source.seed,
            "streaming": streaming,
            "shuffle_buffer": self.shuffle_buffer if streaming else None,
            # Groups of like length are of whole batches.
            "batch_size of all ranks, grouped by length": (
                global_batch if self.group_by_length else None
            ),
        }

    def _stream(self, split: str, train: bool, drop_last: bool) -> PairStream:
        return PairStream(
            self._rows[split],
            self.pair_tokenizer,
            self.invalid_rows,
            self.reports[split],
            seed=self.source.seed,
            shuffle_buffer=self.shuffle_buffer if train else 0,
            drop_last=drop_last,
            **self._share,
        )

    def _sampler(
        self, pairs: PairDataset, batch_size: int, train: bool, drop_last: bool
    ) -> ResumableSampler:
        return ResumableSampler(
            pairs,
            batch_size=batch_size,
            shuffle=train,
            seed=self.source.seed,
            drop_last=drop_last,
            lengths=pairs.rows["length"][:] if self.group_by_length else None,
            **self._share,
        )

    @property
    def _share(self) -> dict[str, int]:
        """Number of shares of the data and the one of this process."""
        share = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return {"num_replicas": 1, "rank": 0} if share is None else share


def _sides(rows: Any) -> tuple[str, ...]:
    """Names of the responses of a split, tokenised or a stream of raw rows."""
    if not isinstance(rows, IterableDataset):
        return sides_of(rows.column_names)
    # A stream may not tell its columns before it is read.
    return sides_of_columns(rows.column_names or next(read_on(rows), {}))
