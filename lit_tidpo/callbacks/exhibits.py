"""How each logger of Lightning's holds what is no number: texts, pictures, pages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import (
    CometLogger,
    LitLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

Rows = list[dict[str, Any]]


class Exhibits:
    """What a logger does with texts, pictures and pages: nothing, if it holds numbers alone.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def experiment(self) -> Any:
        """The object of the logger's own library."""
        return self.logger.experiment

    def texts(self, name: str, rows: Rows, step: int, file: Path) -> None:
        """Hold texts.

        Args:
            name: What they are.
            rows: Each with ``index``, ``prompt`` and ``response``.
            step: Optimizer steps so far.
            file: Where these and earlier ones were written.
        """

    def picture(self, name: str, pixels: Any, step: int, file: Path) -> None:
        """Hold a picture.

        Args:
            name: What it shows.
            pixels: ``[height, width, 3]``, 0 to 255.
            step: Optimizer steps so far.
            file: Where it was written.
        """

    def page(self, file: Path) -> None:
        """Hold a page.

        Args:
            file: HTML.
        """


def _as_text(row: dict[str, Any]) -> str:
    return f"{row['prompt']}\n---\n{row['response']}"


class _InTensorBoard(Exhibits):
    def texts(self, name: str, rows: Rows, step: int, file: Path) -> None:
        for row in rows:
            self.experiment.add_text(f"{name}/{row['index']}", _as_text(row), step)

    def picture(self, name: str, pixels: Any, step: int, file: Path) -> None:
        self.experiment.add_image(name, pixels, step, dataformats="HWC")


class _InWandb(Exhibits):
    def texts(self, name: str, rows: Rows, step: int, file: Path) -> None:
        self.logger.log_table(name, [*rows[0]], [[*row.values()] for row in rows], step=step)

    def picture(self, name: str, pixels: Any, step: int, file: Path) -> None:
        self.logger.log_image(name, [str(file)], step)

    def page(self, file: Path) -> None:
        import wandb

        self.experiment.log({file.stem: wandb.Html(file.read_text(encoding="utf-8"), inject=False)})


class _InMLFlow(Exhibits):
    def texts(self, name: str, rows: Rows, step: int, file: Path) -> None:
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        self.experiment.log_text(self.logger.run_id, text, f"{name}/step-{step}.json")

    def picture(self, name: str, pixels: Any, step: int, file: Path) -> None:
        self.experiment.log_artifact(self.logger.run_id, str(file), name)

    def page(self, file: Path) -> None:
        self.experiment.log_artifact(self.logger.run_id, str(file))


class _InComet(Exhibits):
    def texts(self, name: str, rows: Rows, step: int, file: Path) -> None:
        for row in rows:
            self.experiment.log_text(_as_text(row), step=step, metadata={"name": name, **row})

    def picture(self, name: str, pixels: Any, step: int, file: Path) -> None:
        self.experiment.log_image(str(file), name=name, step=step)

    def page(self, file: Path) -> None:
        self.experiment.log_asset(str(file), file_name=file.name)


class _InLitLogger(Exhibits):
    def texts(self, name: str, rows: Rows, step: int, file: Path) -> None:
        self.logger.log_file(str(file))

    def picture(self, name: str, pixels: Any, step: int, file: Path) -> None:
        self.logger.log_file(str(file))

    def page(self, file: Path) -> None:
        self.logger.log_file(str(file))


_KINDS: dict[type[Any], type[Exhibits]] = {  # LitLogger is none of Lightning's own Logger
    TensorBoardLogger: _InTensorBoard,
    WandbLogger: _InWandb,
    MLFlowLogger: _InMLFlow,
    CometLogger: _InComet,
    LitLogger: _InLitLogger,
}


def exhibits(loggers: Iterable[Logger]) -> list[Exhibits]:
    """The loggers of a run that hold more than numbers."""
    return [
        made(logger)
        for logger in loggers
        for kind, made in _KINDS.items()
        if isinstance(logger, kind)
    ]
