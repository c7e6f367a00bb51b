"""What the laboratory runs: tables of methods x settings x tasks x seeds, from a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_tidpo.errors import InputError

ROOT = Path(__file__).parents[2]
GRID = ROOT / "configs/evidence/grid.yaml"
QUICK = ROOT / "configs/evidence/quick.yaml"
TUNING = ROOT / "configs/evidence/tuning.yaml"
DEFAULT = "default"


@dataclass(frozen=True)
class Task:
    """Data, a base configuration and what is measured after training.

    Attributes:
        title: Name for readers.
        config: Configuration that methods are stacked on.
        data: ``source`` of the pairs; ``longest``: tokens of the longest pair to take.
        headline: The metric that tables show, on the test split.
        selection: The metric that hyperparameters are chosen by, on the validation split.
        generation: What is generated after training; see :mod:`benchmarks.evidence.generation`.
        args: Arguments of the command line for every method.
    """

    title: str
    config: str
    data: dict[str, Any]
    headline: str
    selection: str
    generation: dict[str, Any]
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """What a method or a setting changes.

    Attributes:
        title: Name for readers.
        configs: Configurations to stack.
        args: Arguments of the command line.
        flips: Share of training pairs whose labels are swapped.
        weights: ``planted`` marks the tokens of the defect in the data.
        train: False measures the policy as it starts.
    """

    title: str = ""
    configs: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    flips: float = 0.0
    weights: str = ""
    train: bool = True

    def then(self, other: Variant) -> Variant:
        """Both changes, the other's on top."""
        return Variant(
            self.title,
            self.configs + other.configs,
            self.args + other.args,
            max(self.flips, other.flips),
            self.weights or other.weights,
            self.train and other.train,
        )


@dataclass(frozen=True)
class Table:
    """Methods x settings, and the metrics that are shown of them.

    Attributes:
        title: Name for readers.
        methods: Names of methods.
        measures: Metric, or ``headline`` or ``selection`` for that of the task, to the paper's
            measure beside it.
        settings: Settings by name.
        against: Entry (``method`` or ``method/setting``) that all are compared with, besides DPO.
        tasks: Names of the tasks that it runs on; none means all.
    """

    title: str
    methods: tuple[str, ...]
    measures: dict[str, str]
    settings: dict[str, Variant] = field(default_factory=lambda: {DEFAULT: Variant()})
    against: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Attributes:
        seeds: Seeds of data order, anchors and dropout.
        tasks: Tasks by name.
        methods: Methods by name.
        tables: Tables by name.
        curves: Methods whose training losses are compared.
        args: Arguments of the command line for every cell.
    """

    seeds: tuple[int, ...]
    tasks: dict[str, Task]
    methods: dict[str, Variant]
    tables: dict[str, Table]
    curves: tuple[str, ...]
    args: tuple[str, ...] = ()

    def variant(self, table: str, method: str, setting: str) -> Variant:
        """What an entry of a table changes on its task's configuration."""
        return self.methods[method].then(self.tables[table].settings[setting])

    def metric(self, task: str, measure: str) -> str:
        """The metric of a table's measure on a task."""
        own = {"headline": self.tasks[task].headline, "selection": self.tasks[task].selection}
        return own.get(measure, measure)

    def tasks_of(self, table: Table) -> tuple[str, ...]:
        """Names of the tasks of a table."""
        return table.tasks or tuple(self.tasks)

    def entries(self, task: str) -> Iterator[tuple[str, str, str]]:
        """Table, method and setting of everything that runs on a task."""
        for name, table in self.tables.items():
            if task not in self.tasks_of(table):
                continue
            for method in table.methods:
                for setting in table.settings:
                    yield name, method, setting


def read_grid(path: Path) -> Grid:
    """Read a grid.

    Args:
        path: A YAML file like ``configs/evidence/grid.yaml``.

    Returns:
        The grid.

    Raises:
        InputError: If a field or a name is not known.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        grid = Grid(
            seeds=tuple(content["seeds"]),
            tasks={name: Task(**_frozen(value)) for name, value in content["tasks"].items()},
            methods={name: Variant(**_frozen(v)) for name, v in content["methods"].items()},
            tables={name: _table(value) for name, value in content["tables"].items()},
            curves=tuple(content["curves"]["methods"]),
            args=tuple(content.get("args", ())),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: {error}: expected the fields of configs/evidence/grid.yaml"
        ) from error
    for name, table in grid.tables.items():
        unknown = {*table.methods, *grid.curves} - grid.methods.keys()
        if unknown:
            raise InputError(f"{path}: table {name!r} or the curves name unknown methods {unknown}")
    return grid


def _table(content: dict[str, Any]) -> Table:
    values = _frozen(content)
    if "settings" in values:
        values["settings"] = {
            name: Variant(title=name, **_frozen(change))
            for name, change in values["settings"].items()
        }
    return Table(**values)


def _frozen(content: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
