"""Tokenised pairs as torch data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, IterableDataset

from lit_tidpo.data.loading import read_on
from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.tokenised import sides_of
from lit_tidpo.data.tokenization import PairTokenizer

if TYPE_CHECKING:
    import datasets

Example = dict[str, Any]

# Column for the position of a row, which shuffling a stream would lose.
_NUMBER = "_lit_tidpo_row"


class PairDataset(Dataset[Example]):
    """Tokenised pairs by position; a position ``-1 - i`` is row ``i``, not counted.

    Args:
        rows: Tokenised usable rows.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Example:
        counted = position >= 0
        return {**self.rows[position if counted else -1 - position], "counted": counted}


class PairStream(IterableDataset[Example]):
    """Pairs tokenised as they are read, dealt to the ranks one by one.

    Every rank reads and tokenises the whole stream and keeps its share, so that all ranks get the
    same number of pairs however many rows are unusable, and the order does not depend on their
    number.

    Args:
        rows: The raw rows.
        tokenise: What tokenises a row.
        policy: ``raise`` at an unusable row, or ``drop`` it.
        report: Counts the rows of the current pass, in the process that reads them.
        seed: Seed of the order.
        shuffle_buffer: Rows among which the stream is shuffled; 0 keeps its order.
        num_replicas: Number of ranks.
        rank: This rank.
        drop_last: Leave out an incomplete last round, rather than fill it up.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        tokenise: PairTokenizer,
        policy: InvalidRows,
        report: PreparationReport,
        seed: int = 0,
        shuffle_buffer: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        numbered = rows.map(_with_number, with_indices=True)
        self.rows = (
            numbered.shuffle(seed, buffer_size=shuffle_buffer) if shuffle_buffer else numbered
        )
        # Shuffling mixes files, whose rows are then numbered file by file.
        self._is_interleaved = shuffle_buffer > 0 and rows.num_shards > 1
        self.tokenise = tokenise
        self.policy = policy
        self.report = report
        self.num_replicas = num_replicas
        self.rank = rank
        self.drop_last = drop_last
        self._skipped_rows = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the order depends on."""
        self.rows.set_epoch(epoch)

    def skip_rows(self, count: int) -> None:
        """Leave out the first pairs of all ranks, in the next iteration only."""
        self._skipped_rows = count

    def __iter__(self) -> Iterator[Example]:
        pairs = islice(self._usable(), self._skipped_rows, None)
        self._skipped_rows = 0
        while dealt := list(islice(pairs, self.num_replicas)):
            if self.rank < len(dealt):
                if len(dealt) == self.num_replicas or not self.drop_last:
                    yield {**dealt[self.rank], "counted": True}
            elif not self.drop_last:
                yield {**dealt[0], "counted": False}

    def _usable(self) -> Iterator[Example]:
        self.report.reset()
        for row in read_on(self.rows):
            pair = self.tokenise(row, row[_NUMBER])
            self.report.add(pair)
            self.report.show_shift(pair, self.tokenise.tokenizer)
            if self._is_interleaved:
                pair["index"] = content_number(pair)
            if not pair["problem"]:
                yield pair
            elif self.policy == "raise":
                self.report.check(self.policy)
        self.report.check(self.policy)
        self.report.announce()


def content_number(pair: Example) -> int:
    """A number that equal pairs alone have in common, which what is kept of a pair goes by."""
    ids = [pair[f"{name}_ids"] for name in ("prompt", *sides_of(pair))]
    digest = hashlib.sha256(json.dumps(ids).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # as an int64


def _with_number(row: Example, number: int) -> Example:
    return {**row, _NUMBER: number}
