"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lit_tidpo.errors import InputError


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; reads none with a damaged byte.

    A run that is killed while it writes, or that finds the disk full, leaves the checkpoints there
    as they were. ``Trainer(plugins=[WholeCheckpointIO()])``; the command has it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a file; other file systems than the local one are Lightning's.

        Raises:
            InputError: If it cannot be written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"checkpoint {str(target)!r} cannot be written ({error}): earlier ones are as they "
                "were; make room or name another folder, and resume"
            ) from error

    def load_checkpoint(self, path: str | Path, *rest: Any, **options: Any) -> dict[str, Any]:
        """Read a file, after its checksums have been compared; see :func:`check_whole`."""
        if Path(path).is_file():
            check_whole(Path(path))
        found: dict[str, Any] = super().load_checkpoint(path, *rest, **options)
        return found


def check_whole(path: Path) -> None:
    """Compare what a checkpoint holds with the checksums in it, which ``torch.load`` does not.

    Raises:
        InputError: If the file is cut off or holds a changed byte.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise unreadable(path, error) from error
    if damaged is not None:
        raise InputError(
            f"checkpoint {str(path)!r} is corrupt: {damaged} in it is not what was written; use "
            "another one"
        )


def unreadable(path: Path, error: Exception) -> InputError:
    """What to raise of a file that is no checkpoint."""
    return InputError(
        f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}): the file is corrupt or "
        "is no checkpoint; use another one"
    )
