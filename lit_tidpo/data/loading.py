"""Splits of a data set, from the Hub, a folder or a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets.exceptions import DatasetsError

from lit_tidpo.data.whole_files import drop_damaged, remember
from lit_tidpo.errors import InputError
from lit_tidpo.locations import check_revision, locate

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Library that reads a file of each kind.
_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_COLUMNS = ("chosen", "rejected")


def load_splits(
    source: str,
    name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> Mapping[str, Dataset | IterableDataset]:
    """Load all splits of a data set.

    Args:
        source: Name on the Hub; ``builtin:NAME``; a folder of files named like their splits, or one
            made by ``save_to_disk``; or one ``.json``, ``.jsonl`` or ``.parquet`` file, which
            becomes the split ``train``.
        name: Configuration of a data set that has several.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Folder for downloaded and converted files; None means that of ``datasets``.
        streaming: Read the rows as they are needed.

    Returns:
        The splits by name.

    Raises:
        InputError: If the data are missing, empty or malformed, or an option does not apply.
    """
    place = locate(source)
    path = Path(place)
    try:
        options: dict[str, Any] = {"name": name, "cache_dir": cache_dir}
        if not path.exists():
            return _read(streaming, path=place, revision=revision, **options)
        check_revision("revision", revision, source)
        _check_local(path, source, name)
        if _is_saved(path):
            return _load_saved(path, streaming)
        files = None if path.is_dir() else {"train": str(path)}
        reader = str(path) if path.is_dir() else _READERS[path.suffix]
        return _read(streaming, path=reader, data_files=files, **options)
    except InputError:
        raise
    except (DatasetsError, OSError, ValueError, TypeError, RecursionError) as error:
        if path.exists():
            _check_json(path)
        raise InputError(
            f"the data at {source!r} cannot be read; expected a data set on the Hub, a folder or a "
            f"file of {sorted(_READERS)}: {error.__cause__ or error}"
        ) from error


def _read(streaming: bool, **source: Any) -> dict[str, Any]:
    """What ``datasets.load_dataset`` does, from a cache that is what was written."""
    builder = datasets.load_dataset_builder(**source)
    if streaming:
        return dict(builder.as_streaming_dataset())
    folder = Path(builder.cache_dir)
    if drop_damaged(folder.glob("*.arrow")):
        shutil.rmtree(folder)  # which is taken as a whole
    builder.download_and_prepare()
    remember(folder.glob("*.arrow"))
    return dict(builder.as_dataset())


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
    for column in _COLUMNS:
        if columns is not None and column not in columns:
            raise InputError(
                f"split {wanted!r} of {source!r} has no column {column!r}; it has "
                f"{sorted(columns)}: rename the columns to {_COLUMNS} and optionally 'prompt'"
            )
    if isinstance(split, datasets.Dataset) and len(split) == 0:
        raise InputError(f"split {wanted!r} of {source!r} has no rows")
    return split


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _load_saved(path: Path, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    saved = datasets.load_from_disk(str(path))
    splits = {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    if streaming:
        return {name: split.to_iterable_dataset() for name, split in splits.items()}
    return splits


def _check_local(path: Path, source: str, name: str | None) -> None:
    if path.is_file() and path.suffix not in _READERS:
        raise InputError(f"{source!r} is not a file of {sorted(_READERS)}: convert it")
    if name is not None and (path.is_file() or _is_saved(path)):
        raise InputError(f"name={name!r} picks a configuration, but {source!r} has none: drop it")
    for file in _files(path):
        if file.stat().st_size == 0:
            raise InputError(f"the file {str(file)!r} is empty; expected preference pairs")
    if path.is_dir() and not _is_saved(path) and not any(_files(path)):
        raise InputError(
            f"the folder {source!r} holds no file of {sorted(_READERS)}; expected files named like "
            "their splits, such as train.jsonl"
        )


def _files(path: Path) -> Iterable[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if file.suffix in _READERS]


def _check_json(path: Path) -> None:
    """Find the line that is not JSON, after reading has failed."""
    for file in _files(path):
        if _READERS[file.suffix] != "json":
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{str(file)!r} is not UTF-8 at byte {error.start} ({error.reason}): convert it"
            ) from error
        parts = [text] if _is_json(text) or text.lstrip().startswith("[") else text.split("\n")
        for number, part in enumerate(parts, start=1):
            try:
                _ = part.strip() and json.loads(part)
            except RecursionError as error:
                raise InputError(
                    f"{str(file)!r} line {number} is nested too deeply: expected preference pairs"
                ) from error
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{str(file)!r} line {number + error.lineno - 1} is not JSON ({error.msg}, "
                    f"column {error.colno}): mend or remove it"
                ) from error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True
