"""Where the files of a run are written."""

from __future__ import annotations

import itertools
from pathlib import Path

from lightning.pytorch import Trainer


def log_folder(trainer: Trainer) -> Path:
    """Folder of the run's logs; all ranks have to ask."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def free_file(file: Path) -> Path:
    """The file, or where there is one of an earlier run ``NAME-1``, ``NAME-2``, ... beside it."""
    further = (file.with_name(f"{file.stem}-{n}{file.suffix}") for n in itertools.count(1))
    return next(each for each in itertools.chain([file], further) if not each.exists())
