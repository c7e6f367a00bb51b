"""Run units of work in processes of their own, and go on where an earlier run stopped."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT

RUNS = ROOT / "runs/evidence"


class UnitError(RuntimeError):
    """A unit failed, or has no result."""


@dataclass(frozen=True)
class Unit:
    """A piece of work whose result is kept.

    Attributes:
        name: What it is, for readers.
        function: ``module:function`` of this package. It takes a folder for its files and the
            arguments, and returns what JSON holds.
        arguments: Keyword arguments, as JSON holds them. Units with the same ones are the same.
        code: Patterns of the files of this package that it executes, besides ``lit_tidpo``.
        keeps_files: Whether its files stay beside its result.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    code: str
    keeps_files: bool = False

    @property
    def key(self) -> str:
        """Name of its folder."""
        text = json.dumps([self.function, self.arguments], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def result(self, folder: Path) -> dict[str, Any] | None:
        """``result`` and ``cpu_seconds``, if a run with today's code left them in a folder."""
        path = folder / self.key / "result.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return kept if kept.get("source_hash") == source_hash(self.code) else None


def run_units(units: Sequence[Unit], folder: Path, workers: int, end: float = math.inf) -> bool:
    """Run what has no result of today's code, each unit in a fresh process of one thread.

    Each gets a folder with ``result.json`` and ``log.txt``; equal ones run once. At the ``end``,
    a time of :func:`time.perf_counter`, those that are running are killed.

    Returns:
        Whether all have a result.

    Raises:
        UnitError: If a unit fails. The others that were running are completed first.
    """
    wanted = {unit.key: unit for unit in units}
    todo = [unit for unit in wanted.values() if unit.result(folder) is None]
    print(f"{len(wanted)} units, {len(wanted) - len(todo)} of them done", flush=True)
    started, complete = time.perf_counter(), True
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(_start, unit, folder, end): unit.name for unit in todo}
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                if not job.result():
                    complete = False
                    continue
                left = (time.perf_counter() - started) / number * (len(todo) - number) / 60
                print(f"{number}/{len(todo)} {jobs[job]}; {left:.0f} min left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return complete


def results_of(units: Sequence[Unit], folder: Path) -> list[dict[str, Any]]:
    """The kept results of all units; one that has none of today's code is a UnitError."""
    kept = [unit.result(folder) for unit in units]
    missing = sorted({unit.name for unit, found in zip(units, kept, strict=True) if found is None})
    if missing:
        raise UnitError(
            f"{len(missing)} units have no result of this code, for example {missing[0]!r}: run "
            "`python -m benchmarks.evidence run`"
        )
    return [found for found in kept if found is not None]


@cache
def source_hash(code: str) -> str:
    """Digest of the package with its assets and some files of this one, without documentation."""
    whole = hashlib.sha256()
    files = [*(ROOT / "lit_tidpo").rglob("*.*")]
    files += (path for part in code.split() for path in Path(__file__).parent.glob(part))
    for path in sorted(file for file in files if file.suffix not in (".pyc", ".md")):
        whole.update(str(path.relative_to(ROOT)).encode())
        whole.update(_syntax(path) if path.suffix == ".py" else path.read_bytes())
    return whole.hexdigest()


def _syntax(path: Path) -> bytes:
    """The syntax tree of a module without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree).encode()


def _start(unit: Unit, folder: Path, end: float) -> bool:
    """Run a unit in a process of its own; whether it was done before the end of the time."""
    left = end - time.perf_counter()
    if left <= 0:
        return False
    own = folder / unit.key
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.evidence.runner", json.dumps(asdict(unit)), own]
    with (own / "log.txt").open("wb") as log:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                timeout=left if math.isfinite(left) else None,
            )
        except subprocess.TimeoutExpired:
            return False
    if done.returncode:
        raise UnitError(f"{unit.name} failed with status {done.returncode}; see {own}/log.txt")
    return True


def _run(unit: Unit, folder: Path) -> None:
    """Run a unit here; its result appears when it is complete."""
    source, started = source_hash(unit.code), time.process_time()
    module, _, name = unit.function.partition(":")
    function = getattr(importlib.import_module(f"benchmarks.evidence.{module}"), name)
    result = function(folder, **unit.arguments)
    seconds, scratch = time.process_time() - started, {*folder.iterdir()} - {folder / "log.txt"}
    for path in scratch if not unit.keeps_files else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    content = {"source_hash": source, "name": unit.name, "cpu_seconds": seconds, "result": result}
    part = folder / "result.json.part"
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    part.replace(folder / "result.json")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the log of a grid is long enough
    _run(Unit(**json.loads(sys.argv[1])), Path(sys.argv[2]))
