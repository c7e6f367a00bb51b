"""Cache files of ``datasets`` that are what was written, or gone.

They hold no checksums: a flipped bit in one would train other tokens without a word.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from lit_tidpo.locations import file_digest

_SUFFIX = ".sha256"
_seen: dict[Path, tuple[int, int]] = {}
"""Files that this process has read and found whole, as they were then: a run opens each twice."""


def drop_damaged(files: Iterable[Path]) -> bool:
    """Remove files that are not what :func:`remember` saw, with a word.

    Args:
        files: Cache files; those that were never seen are left alone.

    Returns:
        Whether there was one.

    Raises:
        OSError: If one cannot be removed.
    """
    found = False
    for file in files:
        note = _note(file)
        if not (file.exists() and note.exists()) or _seen.get(file) == _state(file):
            continue
        if note.read_text(encoding="utf-8") == file_digest(file):
            _seen[file] = _state(file)
        else:
            rank_zero_warn(f"the cache file {str(file)!r} is damaged: it is made again")
            file.unlink()
            note.unlink()
            found = True
    return found


def drop_undescribed(cache: Path, content: str) -> bool:
    """Remove prepared data whose ``dataset_info.json`` is no JSON any more, with a word.

    ``datasets`` reads it before it tells where the data are.

    Args:
        cache: Folder of all prepared data.
        content: What the file holds, as the error of the parser tells.

    Returns:
        Whether there was one.
    """
    files = cache.rglob("dataset_info.json")
    damaged = [file for file in files if file.read_text("utf-8", "replace") == content]
    for file in damaged:
        rank_zero_warn(f"the cache file {str(file)!r} is damaged: it is made again")
        shutil.rmtree(file.parent)
    return bool(damaged)


def remember(files: Iterable[Path]) -> None:
    """Note what files hold, beside them, where that can be written and has not been noted."""
    for file in files:
        note = _note(file)
        if note.exists():
            continue
        _seen[file] = _state(file)
        part = note.with_name(f"{note.name}.{os.getpid()}.part")
        with suppress(OSError):  # a cache that is shared and read-only
            part.write_text(file_digest(file), encoding="utf-8")
            part.replace(note)


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _note(file: Path) -> Path:
    return file.with_name(file.name + _SUFFIX)
