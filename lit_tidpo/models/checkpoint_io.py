"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.zero_folder import is_zero_folder, read_zero_folder

Writer = Literal["file", "model_parallel", "fsdp", "deepspeed"]
"""What wrote a checkpoint: one process a file, or strategies each their own kind of folder."""


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

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file, after its checksums have been compared; see :func:`check_whole`.

        Of a folder that several processes wrote, one reads all but the optimizer's state. Lightning
        would read to the CPU, too, but by a function, which states of 8 bits cannot be read by.
        """
        if Path(path).is_dir():
            return read_folder(Path(path))
        if Path(path).is_file():
            check_whole(Path(path))
        found: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return found


def is_distributed_folder(path: Path) -> bool:
    """Whether a folder is a complete checkpoint of PyTorch's: its index is written at last."""
    return all((path / name).is_file() for name in (".metadata", "meta.pt"))


def writer_of(path: Path) -> Writer:
    """What wrote a checkpoint.

    Raises:
        InputError: If it is a folder that no strategy wrote, or that is incomplete.
    """
    if not path.is_dir():
        return "file"
    if is_zero_folder(path):
        return "deepspeed"
    if not is_distributed_folder(path):
        raise InputError(
            f"{str(path)!r} is no checkpoint: expected a file, or a folder with .metadata and "
            "meta.pt, or latest, that a strategy wrote"
        )
    names = FileSystemReader(path).read_metadata().state_dict_metadata
    return "fsdp" if any(name.startswith("model.") for name in names) else "model_parallel"


def read_folder(path: Path) -> dict[str, Any]:
    """Put a checkpoint together that several processes wrote part by part.

    Args:
        path: The folder.

    Returns:
        What a checkpoint file would hold, without the optimizer's state, on the CPU.

    Raises:
        InputError: If it is no such folder, or incomplete.
    """
    if writer_of(path) == "deepspeed":
        return read_zero_folder(path)
    with explained(f"checkpoint {str(path)!r} cannot be put together"):
        rest: dict[str, Any] = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
        with tempfile.TemporaryDirectory() as folder:
            dcp_to_torch_save(path, Path(folder) / "whole.pt")
            found = torch.load(Path(folder) / "whole.pt", map_location="cpu", weights_only=True)
    weights = found["state_dict"] if "state_dict" in found else found["model"]  # FSDP1's name
    return {**rest, "state_dict": weights}


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
