"""Files of data: their kinds, and what is wrong with one that cannot be read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import fsspec

from lit_tidpo.data.fields import check_characters
from lit_tidpo.errors import InputError

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
"""Library that reads a file of each kind."""
_TEXT = ("prompt", "chosen", "rejected", "completion", "instruction", "input", "output", "system")
OPTIONS: dict[str, dict[str, Any]] = {
    "csv": {
        "converters": dict.fromkeys(_TEXT, str),
        "keep_default_na": False,
        "na_values": [""],
    }
}
"""What a library is told besides: answers such as 4, None or N/A are text."""
_PACKED = ("", ".gz", ".zst")
"""Endings of compressed files, after the kind."""
KINDS = f"{sorted(READERS)} (also as .gz or .zst)"


def kind_of(path: Path) -> str:
    """The ending that says what a file holds, of ``pairs.jsonl.gz`` for example ``.jsonl``."""
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


def is_saved(path: Path) -> bool:
    """Whether a folder was made by ``save_to_disk``."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def check_local(path: Path, source: str, name: str | None) -> None:
    """Refuse a file or folder that holds no data.

    Args:
        path: Where it is.
        source: What the user calls it.
        name: Configuration that was asked for, which files have none of.

    Raises:
        InputError: Naming what is wrong.
    """
    if path.is_file() and kind_of(path) not in READERS:
        raise InputError(f"{source!r} is not a file of {KINDS}: convert it")
    if path.suffix == ".zst" and not datasets.config.ZSTANDARD_AVAILABLE:
        raise InputError(f"{source!r} is read by the package zstandard: install it")
    if name is not None and (path.is_file() or is_saved(path)):
        raise InputError(f"name={name!r} picks a configuration, but {source!r} has none: drop it")
    for file in _files(path):
        if file.stat().st_size == 0:
            raise InputError(f"the file {str(file)!r} is empty; expected preference pairs")
    if path.is_dir() and not is_saved(path) and not any(_files(path)):
        raise InputError(
            f"the folder {source!r} holds no file of {KINDS}; expected files named like "
            "their splits, such as train.jsonl"
        )


def _files(path: Path) -> Iterable[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if kind_of(file) in READERS]


def check_json(path: Path) -> None:
    """Find the line that is not JSON, or the text that is none, after reading has failed.

    Raises:
        InputError: Naming it; nothing is raised where all is JSON.
    """
    for file in _files(path):
        if READERS[kind_of(file)] != "json":
            continue
        try:
            with fsspec.open(str(file), "rt", encoding="utf-8", compression="infer") as stream:
                text = stream.read()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{str(file)!r} is not UTF-8 at byte {error.start} ({error.reason}): convert it"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{str(file)!r} cannot be unpacked ({error}): compress it again"
            ) from error
        row = 0
        parts = [text] if _is_json(text) or text.lstrip().startswith("[") else text.split("\n")
        for number, part in enumerate(parts, start=1):
            try:
                value = json.loads(part) if part.strip() else []
            except RecursionError as error:
                raise InputError(
                    f"{str(file)!r} line {number} is nested too deeply: expected preference pairs"
                ) from error
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{str(file)!r} line {number + error.lineno - 1} is not JSON ({error.msg}, "
                    f"column {error.colno}): mend or remove it"
                ) from error
            for each in value if isinstance(value, list) else [value]:
                check_characters(each, f"{str(file)!r} row {row}, counted from 0")
                row += 1


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True
