"""One run of the laboratory: its command line, its identity and its data."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence.data import digest, prepared
from benchmarks.evidence.grid import ROOT, Grid, Task, Variant
from lit_tidpo.cli import main

PACKAGE = ROOT / "lit_tidpo"
Entry = tuple[str, str, str, str]  # task, table, method, setting


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Task, method and what is special, for readers.
        seed: Seed of data order, anchors and dropout.
        config_hash: Digest of the resolved configuration, the data and the seed. Equal cells have
            equal ones.
        arguments: What follows ``lit-tidpo fit``.
        policy: The model that training starts from.
        data: Folder of the pairs.
        train: False measures the policy as it starts.
        generation: What is generated afterwards.
    """

    name: str
    seed: int
    config_hash: str
    arguments: tuple[str, ...]
    policy: str
    data: str
    train: bool
    generation: dict[str, Any]

    @property
    def file_name(self) -> str:
        """Where its result is kept."""
        return f"{self.config_hash[:16]}.json"

    def as_json(self) -> dict[str, Any]:
        """All fields, for the process that runs it."""
        return asdict(self)


def cells_of(grid: Grid, folder: Path) -> dict[tuple[Entry, int], Cell]:
    """All cells of a grid; entries that resolve to the same run share one.

    Args:
        grid: The grid.
        folder: Where prepared data and resolved configurations are kept.

    Returns:
        The cell of each entry and seed.
    """
    configs = Resolved(folder / "resolved")
    found = {}
    for task_name, task in grid.tasks.items():
        for table, method, setting in grid.entries(task_name):
            variant = grid.variant(table, method, setting)
            arguments = _arguments(grid, task, variant)
            config = configs.of(arguments)
            for seed in grid.seeds:
                entry = (task_name, table, method, setting)
                found[entry, seed] = _cell(task, variant, arguments, config, seed, folder / "data")
    return found


def _arguments(grid: Grid, task: Task, variant: Variant) -> tuple[str, ...]:
    configs = [f"--config={ROOT / path}" for path in (task.config, *variant.configs)]
    return (*configs, *grid.args, *task.args, *variant.args)


def _cell(
    task: Task,
    variant: Variant,
    arguments: tuple[str, ...],
    config: dict[str, Any],
    seed: int,
    folder: Path,
) -> Cell:
    policy = config["model"]["policy"]["path"]
    data = prepared(task, variant, seed, policy, folder)
    identity = [config, digest(data), seed, variant.train, task.generation]
    text = json.dumps(identity, sort_keys=True, default=str)
    words = [Path(task.config).stem, *(Path(path).stem for path in variant.configs), *variant.args]
    if variant.flips:
        words.append(f"flips={variant.flips:g}")
    return Cell(
        name=" ".join(words if variant.train else [words[0], "untrained"]),
        seed=seed,
        config_hash=hashlib.sha256(text.encode()).hexdigest(),
        arguments=(
            *arguments,
            f"--data.source={data}",
            f"--data.seed={seed}",
            f"--model.seed={seed}",
            f"--seed_everything={seed}",
        ),
        policy=policy,
        data=str(data),
        train=variant.train,
        generation=task.generation,
    )


class Resolved:
    """What command lines stand for, every default filled in; kept, since parsing takes seconds.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source = source_hash()
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, arguments: tuple[str, ...]) -> dict[str, Any]:
        """The configuration of ``lit-tidpo fit ARGUMENTS``.

        Args:
            arguments: Configurations as ``--config=PATH``, and others.
        """
        files = [Path(a.removeprefix("--config=")) for a in arguments if a.startswith("--config=")]
        texts = [file.read_text(encoding="utf-8") for file in files]
        key = hashlib.sha256(repr((self._source, arguments, texts)).encode()).hexdigest()
        path = self.folder / f"{key[:16]}.yaml"
        if not path.is_file():
            path.write_text(_printed_config(arguments), encoding="utf-8")
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return config


def _printed_config(arguments: tuple[str, ...]) -> str:
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            main(["fit", *arguments, "--print_config"])
    except SystemExit as ended:
        if ended.code:  # it printed why
            raise
    return output.getvalue()


def source_hash() -> str:
    """Digest of what a run executes: the package's syntax trees without docstrings, and its assets.

    Comments and documentation do not change it.
    """
    whole = hashlib.sha256()
    for path in _sources():
        whole.update(str(path.relative_to(ROOT)).encode())
        whole.update(_code(path) if path.suffix == ".py" else path.read_bytes())
    return whole.hexdigest()


def _sources() -> Iterator[Path]:
    # What builds assets runs beforehand, and its products are below.
    yield from sorted(p for p in PACKAGE.rglob("*.py") if "build" not in p.parts)
    yield from sorted(PACKAGE.glob("assets/*policy/*.*"))
    yield from [Path(__file__).with_name(f"{name}.py") for name in ("run_cell", "generation")]


def _code(path: Path) -> bytes:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree).encode()
