"""The splits of a data set that a run uses, raw and tokenised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_tidpo.data.loading import Source, load_splits, pick_split, renamed
from lit_tidpo.data.preparation import tokenise_split, usable_rows
from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.shapes import COLUMNS
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.errors import InputError

Splits = Mapping[str, "Dataset | IterableDataset"]


@dataclass(frozen=True)
class SplitSource:
    """Where the splits come from, and which of its rows.

    Attributes:
        source: Name on the Hub, ``builtin:NAME``, folder or file, or data of ``datasets``.
        name: Configuration of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        cache_dir: Folder for downloaded and tokenised data.
        streaming: Read rows as they are needed.
        train_split: Name of the training split.
        validation_split: Name of the validation split.
        validation_fraction: Share of the training split to hold out where the data have no
            validation split.
        max_rows: Rows to read of each split; None reads all.
        seed: Seed of the held-out rows.
        columns: For each of our names of columns the one in the data, or None to leave it out.
        processes: Processes that tokenise.
    """

    source: Source
    name: str | None = None
    revision: str | None = None
    cache_dir: str | None = None
    streaming: bool = False
    train_split: str = "train"
    validation_split: str = "validation"
    validation_fraction: float = 0.0
    max_rows: int | None = None
    seed: int = 0
    columns: Mapping[str, str | None] = field(default_factory=dict)
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"validation_fraction must be in [0, 1); got {self.validation_fraction}"
            )
        if self.validation_fraction and self.streaming:
            raise InputError(
                f"validation_fraction={self.validation_fraction} does not go with streaming, "
                "because a stream's size is not known: name a validation_split"
            )
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"max_rows must be at least 1, or None for all; got {self.max_rows}")

    @property
    def label(self) -> str:
        """What messages and checkpoints call the source."""
        return self.source if isinstance(self.source, str) else f"<{type(self.source).__name__}>"

    def load(self) -> Splits:
        """All splits, raw."""
        options = (self.name, self.revision, self.cache_dir, self.streaming)
        return renamed(load_splits(self.source, *options), self.columns)

    def splits_to_fit(self, raw: Splits) -> list[str]:
        """The training split and, if there is one or one is held out, the validation split."""
        if self.validation_split in raw and self.validation_fraction > 0:
            rank_zero_warn(
                f"validation_fraction={self.validation_fraction} has no effect: the data have a "
                f"split {self.validation_split!r}"
            )
        if self.validation_split in raw or self.validation_fraction > 0:
            return [self.train_split, self.validation_split]
        return [self.train_split]

    def having(self, raw: Splits, split: str) -> list[tuple[SplitSource, Splits, str]]:
        """The sources that have a split, and what it is called there: this one."""
        return [(self, raw, split)]

    def rows(self, raw: Splits, split: str) -> Any:
        """The raw rows of a split.

        Raises:
            InputError: If the split is missing, empty or lacks a column.
        """
        rows = pick_split(raw, split, self.label)
        if self.max_rows is None or (isinstance(rows, Dataset) and len(rows) <= self.max_rows):
            return rows
        return rows.take(self.max_rows)

    def tokenised(self, raw: Splits, split: str, tokenise: PairTokenizer) -> Dataset:
        """The tokenised rows of a split, from the cache if they were tokenised before.

        Raises:
            InputError: If the split is missing, or its rows have another shape than expected.
        """
        held_out = self.validation_fraction > 0 and self.validation_split not in raw
        parts = {self.train_split: "train", self.validation_split: "test"} if held_out else {}
        rows = self.rows(raw, self.train_split if split in parts else split)
        try:
            tokenised = tokenise_split(rows, tokenise, self.cache_dir, self.processes)
        except InputError as error:
            raise InputError(
                f"{error} (split {split!r} of {self.label!r}; its rows count from 0)"
            ) from error
        except UnicodeDecodeError as error:  # text is decoded when it is looked at
            raise InputError(
                f"the data at {self.label!r} hold text that is not UTF-8 ({error.reason}): "
                "convert them"
            ) from error
        if split not in parts:
            return tokenised
        try:
            cut = tokenised.train_test_split(test_size=self.validation_fraction, seed=self.seed)
        except ValueError as error:
            raise InputError(
                f"validation_fraction={self.validation_fraction} leaves no training pair of "
                f"{len(rows)}: lower it or add a validation split"
            ) from error
        return cut[parts[split]]

    def tell_unused(self, raw: Splits, split: str) -> None:
        """Name the columns that are not read."""
        unused = set(raw[split].column_names or ()) - COLUMNS if split in raw else ()
        if unused:
            rank_zero_info(f"split {split!r}: columns {sorted(unused)} are not used")

    def usable(
        self, raw: Splits, split: str, tokenise: PairTokenizer, policy: InvalidRows
    ) -> tuple[Dataset, dict[str, PreparationReport]]:
        """The tokenised rows of a split that can be trained on, and what became of all.

        Raises:
            InputError: As for :meth:`tokenised`, or if there are unusable rows and the policy is
                ``raise``, or no others.
        """
        self.tell_unused(raw, split)
        rows = self.tokenised(raw, split, tokenise)
        usable, report = usable_rows(rows, split, policy, tokenise.tokenizer)
        return usable, {split: report}
