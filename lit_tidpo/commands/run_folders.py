"""The folder of a run: that of a named one, or a new one as Lightning lays them out."""

from __future__ import annotations

import csv
import itertools
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lit_tidpo.errors import InputError, explained

_LOCK = ".running"


def named_folder(run: str | None, resume: bool, root: str | None) -> Path | None:
    """Folder of a named run.

    Args:
        run: Its name (``--run``).
        resume: Whether the run goes on (``--resume``).
        root: ``trainer.default_root_dir``, as it was given.

    Returns:
        ``ROOT/RUN``, where ``ROOT`` is ``runs`` by default; the root itself where a run without a
        name goes on; None where the run has no folder of its own yet.

    Raises:
        InputError: If a name is missing or is none.
    """
    base = None if root is None else Path(root).expanduser()
    if run is None:
        if resume and base is None:
            raise InputError(
                "--resume needs to know which run: add --run NAME, or set trainer.default_root_dir"
            )
        return base if resume else None
    if run in ("", ".", "..") or Path(run).name != run:
        raise InputError(
            f"run={run!r}: expected a name, such as tidpo-3; its folder is put below "
            "trainer.default_root_dir, or runs"
        )
    return (base or Path("runs")) / run


def enter(folder: Path, resume: bool, stack: ExitStack) -> None:
    """Make the folder of a run that trains, for one process at a time.

    Args:
        folder: The folder.
        resume: Whether what is there may be gone on with.
        stack: Gives the folder free again when it is closed; the system does if the process dies.

    Raises:
        InputError: If a run is there that is not to go on, or is being trained.
    """
    with explained(f"the run's folder {str(folder)!r} cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(folder / _LOCK).acquire(timeout=0))
        except Timeout as error:
            raise InputError(
                f"another process trains in {str(folder)!r}: wait for its end, or choose another "
                "--run"
            ) from error
    if not resume and any(entry.name != _LOCK for entry in folder.iterdir()):
        raise InputError(
            f"{str(folder)!r} holds a run: add --resume to go on with it, or choose another --run"
        )


def settle(trainer: Trainer, folder: Path, command: str, steps: int) -> None:
    """Let loggers and checkpoints write into the folder of a named run.

    Args:
        trainer: The Trainer.
        folder: The folder.
        command: What runs: ``fit`` logs into the folder itself, the others below it.
        steps: Steps that the checkpoint which the run goes on from has seen; later rows of the
            curves are of a run that was cut off.
    """
    for logger in trainer.loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):
            logger._root_dir = str(folder)
            logger._name = "" if command == "fit" else command
            logger._version = "" if command == "fit" else None
            if isinstance(logger, CSVLogger):
                logger._save_dir = str(folder)
                if command == "fit" and trainer.is_global_zero:
                    _cut_rows(folder / ExperimentWriter.NAME_METRICS_FILE, steps)
                    logger._experiment = _ContinuedWriter(str(folder))
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            if callback.dirpath is not None:
                raise InputError(
                    f"ModelCheckpoint's dirpath={str(callback.dirpath)!r}: a named run keeps its "
                    "checkpoints in its own folder; leave it out, or set it to null"
                )
            callback.dirpath = str((folder / "checkpoints").absolute())


class _ContinuedWriter(ExperimentWriter):
    """Goes on with the file that is there, which Lightning's deletes."""

    def _check_log_dir_exists(self) -> None:
        with suppress(FileNotFoundError), open(self.metrics_file_path, newline="") as file:
            self.metrics_keys = next(csv.reader(file), [])


def _cut_rows(file: Path, steps: int) -> None:
    if file.exists():
        with file.open(newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [row for row in reader if int(row["step"]) < steps]
        part = file.with_suffix(".part")
        with part.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, reader.fieldnames or ["step"])
            writer.writeheader()
            writer.writerows(rows)
        part.replace(file)


def reserve(trainer: Trainer, trains: bool) -> None:
    """Make folders of a run without a name now, so that two that start together share none.

    Args:
        trainer: The Trainer.
        trains: Whether it will write checkpoints.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)) and logger._version is None:
            with explained(f"the log folder {logger.root_dir!r} cannot be made"):
                for version in itertools.count(logger._get_next_version()):
                    logger._version = version
                    if _made(Path(logger.log_dir)):
                        break
    if trains and not trainer.loggers and "://" not in trainer.default_root_dir:
        root = Path(trainer.default_root_dir)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                with explained(f"the folder of checkpoints in {str(root)!r} cannot be made"):
                    names = (f"checkpoints{f'-{n}' if n else ''}" for n in itertools.count())
                    made = (root / name for name in names if _made(root / name))
                    callback.dirpath = str(next(made))


def _made(folder: Path) -> bool:
    try:
        os.makedirs(folder)
    except FileExistsError:
        return False
    return True
