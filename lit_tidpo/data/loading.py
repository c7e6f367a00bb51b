"""Splits of a data set, from the Hub, a folder or a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.exceptions import DatasetsError

from lit_tidpo.data.fields import check_characters
from lit_tidpo.data.files import KINDS, OPTIONS, READERS, check_json, check_local, is_saved, kind_of
from lit_tidpo.data.shapes import COLUMNS, shape_of
from lit_tidpo.data.whole_files import drop_damaged, drop_undescribed, remember
from lit_tidpo.errors import InputError, explained
from lit_tidpo.locations import check_revision, locate

_UNREADABLE = (
    DatasetsError,
    OSError,
    EOFError,
    StopIteration,
    ValueError,
    TypeError,
    RecursionError,
)
"""What ``datasets`` raises at files that it cannot read."""

Source: TypeAlias = "str | Dataset | DatasetDict | Sequence[Mapping[str, Any]]"


def load_splits(
    source: Source,
    name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> Mapping[str, Dataset | IterableDataset]:
    """Load all splits of a data set.

    Args:
        source: Name on the Hub; ``builtin:NAME``; a folder of files named like their splits, or one
            made by ``save_to_disk``; or one ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file,
            also as ``.gz`` or ``.zst``, which becomes the split ``train``. Or a ``DatasetDict``, or
            a ``Dataset`` or a list of rows, which become the split ``train``.
        name: Configuration of a data set that has several.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Folder for downloaded and converted files; None means that of ``datasets``.
        streaming: Read the rows as they are needed.

    Returns:
        The splits by name.

    Raises:
        InputError: If the data are missing, empty or malformed, or an option does not apply.
    """
    if not isinstance(source, str):
        return _given(source, name, revision, streaming)
    place = locate(source)
    path = Path(place)
    try:
        options: dict[str, Any] = {"name": name, "cache_dir": cache_dir}
        if not path.exists():
            return _read(streaming, path=place, revision=revision, **options)
        check_revision("revision", revision, source)
        check_local(path, source, name)
        if is_saved(path):
            return _load_saved(path, streaming)
        files = None if path.is_dir() else {"train": str(path)}
        reader = str(path) if path.is_dir() else READERS[kind_of(path)]
        own = OPTIONS.get(reader, {})
        return _read(streaming, path=reader, data_files=files, **options, **own)
    except InputError:
        raise
    except _UNREADABLE as error:
        if path.exists():
            check_json(path)
        raise InputError(
            f"the data at {source!r} cannot be read; expected a data set on the Hub, a folder or a "
            f"file of {KINDS}: {error.__cause__ or error}"
        ) from error


def _read(streaming: bool, **source: Any) -> dict[str, Any]:
    """What ``datasets.load_dataset`` does, from a cache that is what was written."""
    try:
        builder = datasets.load_dataset_builder(**source)
    except json.JSONDecodeError as error:
        cache = Path(source["cache_dir"] or datasets.config.HF_DATASETS_CACHE)
        if not drop_undescribed(cache, error.doc):
            raise
        builder = datasets.load_dataset_builder(**source)
    if streaming:
        return dict(builder.as_streaming_dataset())
    folder = Path(builder.cache_dir)
    if drop_damaged(folder.glob("*.arrow")):
        shutil.rmtree(folder)  # which is taken as a whole
    builder.download_and_prepare()
    remember(folder.glob("*.arrow"))
    return dict(builder.as_dataset())


def read_on(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a stream, whose files are read while it runs.

    Raises:
        InputError: If one cannot be read.
    """
    stream = iter(rows)
    while True:
        with explained("the stream of rows cannot be read"):
            row = next(stream, None)
        if row is None:
            return
        yield row


def renamed(
    splits: Mapping[str, Dataset | IterableDataset], columns: Mapping[str, str | None]
) -> dict[str, Dataset | IterableDataset]:
    """Splits whose columns have the names that are read.

    Args:
        splits: The splits by name.
        columns: For each of our names the one in the data; None leaves out a column of that name.

    Raises:
        InputError: If a name is none of ours, or there is no such column.
    """
    strange = set(columns) - COLUMNS
    if strange:
        raise InputError(
            f"columns={dict(columns)}: {sorted(strange)} are not read; expected "
            f"{{OUR_NAME: THEIR_NAME}} with names of ours out of {sorted(COLUMNS)}"
        )
    theirs = {name: ours for ours, name in columns.items() if name is not None}
    found = {}
    for split, rows in splits.items():
        present = set(rows.column_names or theirs)
        if missing := sorted(set(theirs) - present):
            raise InputError(
                f"columns={dict(columns)}: split {split!r} has no column {missing[0]!r}; it has "
                f"{sorted(present)}"
            )
        dropped = (set(columns) & present) - set(theirs)
        # In two steps, as names may be swapped.
        rows = rows.remove_columns(sorted(dropped))
        rows = rows.rename_columns({name: f"_lit_tidpo_{ours}" for name, ours in theirs.items()})
        found[split] = rows.rename_columns({f"_lit_tidpo_{ours}": ours for ours in theirs.values()})
    return found


def pick_split(
    splits: Mapping[str, Dataset | IterableDataset], wanted: str, source: str
) -> Dataset | IterableDataset:
    """Pick a split and check that it holds preference pairs.

    Args:
        splits: The splits by name.
        wanted: Name of the split.
        source: Where the data come from, for messages.

    Returns:
        The split.

    Raises:
        InputError: If there is no such split, or it has no rows or lacks a column.
    """
    if wanted not in splits:
        raise InputError(
            f"the data at {source!r} have no split {wanted!r}; they have {sorted(splits)}: name "
            "one of them, or add the split"
        )
    split = splits[wanted]
    columns = split.column_names  # None where a stream has not been read yet
    if columns is not None and shape_of(frozenset(columns)) is None:
        missing = next(name for name in ("chosen", "rejected") if name not in columns)
        raise InputError(
            f"split {wanted!r} of {source!r} has no column {missing!r}; it has {sorted(columns)}: "
            f"tell what its columns are, as in data.columns={{{missing}: {min(columns)}}}, or see "
            "`lit-tidpo data --shapes`"
        )
    if isinstance(split, Dataset) and len(split) == 0:
        raise InputError(f"split {wanted!r} of {source!r} has no rows")
    return split


def _given(
    source: Any, name: str | None, revision: str | None, streaming: bool
) -> dict[str, Dataset | IterableDataset]:
    """Splits that a program hands over."""
    if name is not None or revision is not None:
        raise InputError(
            f"name={name!r} and revision={revision!r} apply to the Hub, but the source is data: "
            "drop them"
        )
    if not isinstance(source, (Dataset, DatasetDict)):
        with explained("the rows that were given as source are no data set"):
            try:
                source = Dataset.from_list(list(source))
            except UnicodeEncodeError:
                for number, row in enumerate(source):
                    check_characters(row, f"row {number} of the source")
                raise
    splits = {"train": source} if isinstance(source, Dataset) else dict(source)
    return {n: split.to_iterable_dataset() for n, split in splits.items()} if streaming else splits


def _load_saved(path: Path, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    return _given(datasets.load_from_disk(str(path)), None, None, streaming)
