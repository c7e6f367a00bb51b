"""Which checkpoint ``last``, ``best`` and ``--resume`` stand for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.checkpoint_io import check_whole, is_distributed_folder, unreadable
from lit_tidpo.models.zero_folder import is_zero_folder, read_zero_state


def folders_of(trainer: Trainer) -> list[Path]:
    """Folders where the checkpoints of runs like this one, without a name, may be."""
    roots = [Path(trainer.default_root_dir) / "lightning_logs"]
    roots += [
        Path(logger.save_dir) / str(logger.name or "")
        for logger in trainer.loggers
        if logger.save_dir is not None
    ]
    folders = {folder for root in roots for folder in root.glob("*/checkpoints")}
    folders |= {*Path(trainer.default_root_dir).glob("checkpoints*")}
    folders |= {
        Path(callback.dirpath)
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.dirpath
    }
    return sorted(folders)


def newest(folders: Iterable[Path], pattern: str = "*.ckpt") -> Path | None:
    """The newest complete checkpoint; a damaged one is passed over with a word.

    Args:
        folders: Where to look, not below.
        pattern: Of the names.
    """
    found = {file for folder in folders for file in folder.glob(pattern)}
    for file in sorted(found, key=lambda each: (each.stat().st_mtime, each.name), reverse=True):
        try:
            check_complete(file)
        except InputError as error:
            rank_zero_warn(f"passed over: {error}")
        else:
            return file
    return None


def check_complete(checkpoint: Path) -> None:
    """Refuse a file with a damaged byte, and a folder that lacks its index.

    Raises:
        InputError: If it is not complete.
    """
    if not checkpoint.is_dir():
        check_whole(checkpoint)
    elif not is_zero_folder(checkpoint) and not is_distributed_folder(checkpoint):
        raise unreadable(checkpoint, FileNotFoundError())


def best(checkpoint: Path) -> Path:
    """The best checkpoint of a run, as its newest one remembers it.

    Args:
        checkpoint: The newest one.

    Raises:
        InputError: If no metric was watched, or the file is gone.
    """
    states = [
        state
        for name, state in (_content(checkpoint).get("callbacks") or {}).items()
        if name.startswith("ModelCheckpoint") and state.get("monitor") is not None
    ]
    named = sorted({state["best_model_path"] for state in states if state["best_model_path"]})
    if len(named) != 1:
        raise InputError(
            f"ckpt_path='best': {str(checkpoint)!r} knows "
            f"{f'several, {named}' if named else 'of none'}: give the file, or train with one "
            "ModelCheckpoint that has a monitor"
        )
    # The run's folder may have been moved.
    places = [Path(named[0]), checkpoint.parent / Path(named[0]).name]
    file = next((place for place in places if place.exists()), None)
    if file is None:
        raise InputError(f"ckpt_path='best': {named[0]!r} is gone: give another file")
    return file


def steps_of(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint has seen."""
    return int(_content(checkpoint).get("global_step", 0))


def _content(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside tensors, which stay on the disk."""
    if is_zero_folder(checkpoint):
        return read_zero_state(checkpoint)
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    with explained(f"checkpoint {str(checkpoint)!r} cannot be read"):
        found: dict[str, Any] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=not checkpoint.is_dir()
        )
    return found
