"""What is run: tables of methods x settings x tasks x seeds, from a YAML file."""

from __future__ import annotations

import os
from argparse import ArgumentError
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from benchmarks.evidence.data import prepared
from benchmarks.evidence.published import made
from benchmarks.evidence.runner import RUNS, Unit
from benchmarks.report import ROOT
from lit_tidpo.errors import InputError

CONFIGS = ROOT / "configs/evidence"
DEFAULT = "default"
CODE = "cell.py generation.py"
# A name on the Hub, a folder or a GGUF file.
MODEL, PUBLISHED_MODEL = "EVIDENCE_MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct"
Entry = tuple[str, str, str, str]  # task, table, method, setting


@dataclass(frozen=True)
class Task:
    """Data, a configuration that methods are stacked on, and what is measured.

    Attributes:
        start: Where cells start from a published model: ``config`` and ``data`` of its SFT, or
            nothing for the model as it is. Policies are then kept beside the results.
    """

    title: str
    config: str
    data: dict[str, Any]
    headline: str
    selection: str
    generation: dict[str, Any]
    args: tuple[str, ...] = ()
    start: dict[str, Any] | None = None


@dataclass(frozen=True)
class Variant:
    """What a method or a setting changes."""

    title: str = ""
    configs: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    flips: float = 0.0
    weights: str = ""
    train: bool = True


@dataclass(frozen=True)
class Table:
    """Methods x settings, and the metrics that are shown of them."""

    title: str
    methods: tuple[str, ...]
    measures: dict[str, str]
    settings: dict[str, Variant] = field(default_factory=lambda: {DEFAULT: Variant()})
    against: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A grid file; the fields are told in ``configs/evidence/grid.yaml``."""

    seeds: tuple[int, ...]
    tasks: dict[str, Task]
    methods: dict[str, Variant]
    tables: dict[str, Table]
    curves: tuple[str, ...] = ()
    args: tuple[str, ...] = ()

    def entries(self) -> Iterator[Entry]:
        """Everything that runs, table by table."""
        for name, table in self.tables.items():
            for task in table.tasks or self.tasks:
                for method in table.methods:
                    for setting in table.settings:
                        yield task, name, method, setting


def read_yaml(path: str) -> dict[str, Any]:
    """Content of a file, by its path from the root of the repository."""
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return content


def read_grid(path: Path) -> Grid:
    """Read a grid, and from its ``base`` what it leaves out; an unknown name is an InputError."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Grid, "grid")
    try:
        content = {"grid": _with_base(read_yaml(str(path)))}
        grid: Grid = parser.instantiate(parser.parse_object(content)).grid
    except ArgumentError as error:
        raise InputError(f"{path}: {error}") from error
    unknown = {*grid.curves, *(method for _, _, method, _ in grid.entries())} - {*grid.methods}
    if unknown:
        raise InputError(f"{path}: the tables or curves name unknown methods {sorted(unknown)}")
    return grid


def _with_base(content: dict[str, Any]) -> dict[str, Any]:
    base = content.pop("base", None)
    return content if base is None else _with_base(read_yaml(base)) | content


def cells_of(grid: Grid, folder: Path = RUNS) -> dict[tuple[Entry, int], Unit]:
    """The unit of each entry and seed, equal where they run the same; data go into the folder."""
    places = [(entry, seed) for entry in grid.entries() for seed in grid.seeds]
    return {(entry, seed): _cell(grid, entry, seed, folder) for entry, seed in places}


def starts_of(grid: Grid, folder: Path = RUNS) -> list[Unit]:
    """The units that make what the cells of tasks start from, before them."""
    tasks = grid.tasks.values()
    return [_start(grid, task, folder) for task in tasks if task.start is not None]


def _start(grid: Grid, task: Task, folder: Path) -> Unit:
    path, configs, args = os.environ.get(MODEL, PUBLISHED_MODEL), [], [*grid.args]
    policy = {"path": path}
    if path.endswith(".gguf"):
        policy = {"path": str(Path(path).parent), "gguf_file": Path(path).name}
    if task.start:
        configs = [read_yaml(task.start["config"])]
        data = made(task.start["data"], folder / "data")
        args = [*args, *task.start.get("args", ()), f"--data.source={data['source']}"]
    arguments = {"policy": policy, "configs": configs, "args": args}
    return Unit(f"the start of {task.title}", "cell:make_start", arguments, CODE, True)


def _cell(grid: Grid, entry: Entry, seed: int, folder: Path) -> Unit:
    task, table, method, setting = entry
    about, changes = grid.tasks[task], (grid.methods[method], grid.tables[table].settings[setting])
    paths = [about.config, *(path for change in changes for path in change.configs)]
    configs = [read_yaml(path) for path in paths]
    weights, flips = max(c.weights for c in changes), max(c.flips for c in changes)
    policy, extra = configs[0]["model"]["policy"], {}
    if about.start is not None:
        policy["path"] = str(folder / _start(grid, about, folder).key / "model")
        extra = {"reference": policy["path"]}
    own = made(about.data, folder / "data")
    data = prepared(own, weights, flips, seed, policy["path"], folder / "data")
    args = [*grid.args, *about.args, *(word for change in changes for word in change.args)]
    args = [word.replace("{start}", policy["path"]) for word in args]
    arguments = {
        "configs": configs,
        "args": [*args, *seeded(seed), f"--data.source={data}"],
        "train": all(change.train for change in changes),
        "generation": {**about.generation, **extra, "data": data, "seed": seed},
    }
    name, keeps = f"{task} {method} {setting} seed {seed}", about.start is not None
    return Unit(name, "cell:run_cell", arguments, CODE, keeps)


def seeded(seed: int) -> list[str]:
    """Arguments that set the seeds of a run."""
    return [f"--{name}={seed}" for name in ("seed_everything", "model.seed", "data.seed")]
