"""Several data sets as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info

from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.shapes import shape_of
from lit_tidpo.data.splits import Splits, SplitSource
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.errors import InputError

_KEYS = ("source", "weight", "split", "columns", "name", "revision")


@dataclass(frozen=True)
class MixedSource:
    """Several sources, whose training splits are mixed and whose other splits are joined.

    Attributes:
        parts: The sources.
        weights: Shares of the training rows, as far as they relate to each other. Rows are drawn by
            them until all rows of all parts have come, those of small parts more than once. None
            takes each row once.
        seed: Seed of the draw.
    """

    parts: tuple[SplitSource, ...]
    weights: tuple[float, ...] | None
    train_split: str
    validation_split: str
    seed: int
    streaming: bool = False

    @property
    def label(self) -> str:
        """What messages and checkpoints call the source."""
        return " + ".join(part.label for part in self.parts)

    def load(self) -> list[Splits]:
        """All splits of all parts, raw."""
        return [part.load() for part in self.parts]

    def splits_to_fit(self, raw: list[Splits]) -> list[str]:
        """The training split and, if a part has one or holds one out, the validation split."""
        names = [part.splits_to_fit(own) for part, own in zip(self.parts, raw, strict=True)]
        return max(([self.train_split, *own[1:]] for own in names), key=len)

    def tokenised(self, raw: list[Splits], split: str, tokenise: PairTokenizer) -> None:
        """Tokenise a split, so that it is in the cache."""
        for part, own, name in self.having(raw, split):
            part.tokenised(own, name, tokenise)

    def usable(
        self, raw: list[Splits], split: str, tokenise: PairTokenizer, policy: InvalidRows
    ) -> tuple[Dataset, dict[str, PreparationReport]]:
        """The tokenised rows of a split that can be trained on, and what became of all.

        Rows are numbered through, part by part.

        Raises:
            InputError: If no part has the split, or one has unusable rows and the policy is
                ``raise``, or no others.
        """
        reports: dict[str, PreparationReport] = {}
        tables: list[Dataset] = []
        start = 0
        for part, own, name in self.having(raw, split):
            rows, found = part.usable(own, name, tokenise, policy)
            reports |= {f"{split} of {part.label}": report for report in found.values()}
            numbers = np.asarray(rows["index"][:]) + start
            tables.append(rows.remove_columns("index").add_column("index", numbers))
            start += len(own[name] if name in own else own[part.train_split])
        check_kinds(reports.values(), self.label)
        if self.weights is None or split != self.train_split:
            return datasets.concatenate_datasets(tables), reports
        shares = np.asarray(self.weights) / sum(self.weights)
        mixed = datasets.interleave_datasets(
            tables, list(shares), seed=self.seed, stopping_strategy="all_exhausted"
        )
        rank_zero_info(
            f"{len(mixed)} pairs are drawn from {[len(rows) for rows in tables]} of {self.label}"
        )
        return mixed, reports

    def having(self, raw: list[Splits], split: str) -> list[tuple[SplitSource, Splits, str]]:
        """The parts that have a split, and what it is called there."""
        found = []
        for part, own in zip(self.parts, raw, strict=True):
            name = part.train_split if split == self.train_split else split
            held_out = name == part.validation_split and part.validation_fraction > 0
            if name == part.train_split or name in own or held_out:
                found.append((part, own, name))
        if not found:
            raise InputError(
                f"none of {self.label} has a split {split!r}: name one that there is, or add it"
            )
        return found


def split_source(source: Any, common: SplitSource) -> SplitSource | MixedSource:
    """One source, or several where a list of them is given.

    Args:
        source: What :func:`~lit_tidpo.data.loading.load_splits` takes, or a list of mappings with
            ``source`` and optionally ``weight``, ``split``, ``columns``, ``name``, ``revision``.
        common: What all parts share.

    Raises:
        InputError: If an entry is malformed, or what is common does not apply to several sources.
    """
    if not names_sources(source):
        return common
    entries = list(source)
    for entry in entries:
        _check(entry)
    alone = {"streaming": common.streaming, "name": common.name, "revision": common.revision}
    if given := [name for name, value in alone.items() if value]:
        raise InputError(
            f"{given[0]}={alone[given[0]]!r} does not go with several sources: "
            + ("train on one" if given == ["streaming"] else "give it to the one that it is of")
        )
    parts = tuple(
        dataclasses.replace(
            common,
            source=entry["source"],
            train_split=entry.get("split") or common.train_split,
            columns={**common.columns, **(entry.get("columns") or {})},
            name=entry.get("name"),
            revision=entry.get("revision"),
        )
        for entry in entries
    )
    weights = _weights(entries)
    return MixedSource(parts, weights, common.train_split, common.validation_split, common.seed)


def check_kinds(reports: Iterable[PreparationReport], label: str) -> None:
    """Refuse pairs in one source and single responses in another.

    Args:
        reports: What became of the rows of each.
        label: What messages call them together.

    Raises:
        InputError: If there are both.
    """
    if len({each.is_single for each in reports}) > 1:
        raise InputError(f"{label} hold pairs here, single responses there: train on one kind")


def names_sources(source: Any) -> bool:
    """Whether a source is a list of several, rather than of rows."""
    return isinstance(source, (list, tuple)) and any(
        isinstance(entry, Mapping) and "source" in entry and shape_of(frozenset(entry)) is None
        for entry in source
    )


def _check(entry: Any) -> None:
    if not isinstance(entry, Mapping) or "source" not in entry or not set(entry) <= set(_KEYS):
        raise InputError(
            f"several sources are a list of mappings with 'source' and optionally {_KEYS[1:]}; "
            f"got {entry!r:.120}"
        )


def _weights(entries: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
    given = [entry.get("weight") for entry in entries]
    if all(weight is None for weight in given):
        return None
    if all(isinstance(weight, (int, float)) and 0 < weight < float("inf") for weight in given):
        return tuple(float(weight) for weight in given if weight is not None)
    raise InputError(
        f"the weights of the sources are {given}: give each a number above 0, or none one"
    )
