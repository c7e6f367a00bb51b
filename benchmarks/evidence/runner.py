"""Run the cells of a grid side by side, and go on where an earlier run stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.grid import ROOT
from benchmarks.evidence.run_cell import write


class CellError(RuntimeError):
    """A cell failed; its log says why."""


def run_cells(cells: Sequence[Cell], source: str, folder: Path, workers: int) -> None:
    """Run what has no result yet, each cell in a fresh process of one thread.

    Args:
        cells: Cells, of which equal ones run once.
        source: Digest of the code that they run with; results of another one are made again.
        folder: Where results are kept.
        workers: Processes side by side.

    Raises:
        CellError: If a cell fails. The others that were running are completed first.
    """
    wanted = {cell.file_name: cell for cell in cells}
    todo = [c for name, c in wanted.items() if result_of(c, source, folder) is None]
    print(f"{len(wanted)} cells, {len(wanted) - len(todo)} of them done", flush=True)
    started, running = time.perf_counter(), Running(source, folder)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, (cell, seconds) in enumerate(pool.map(running.run, todo), start=1):
                left = (time.perf_counter() - started) / number * (len(todo) - number)
                print(
                    f"{number}/{len(todo)} {cell.name} seed {cell.seed}: {seconds:.0f} CPU s; "
                    f"{left / 60:.0f} min left",
                    flush=True,
                )
        except BaseException:
            running.stop()
            raise


def result_of(cell: Cell, source: str, folder: Path) -> dict[str, Any] | None:
    """The kept result of a cell, if it is of this code.

    Args:
        cell: The cell.
        source: Digest of the code.
        folder: Where results are kept.
    """
    path = folder / "cells" / cell.file_name
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = result["cell"]["config_hash"] == cell.config_hash and result["source_hash"] == source
    return result if same else None


class Running:
    """Processes of a run, which end with it.

    Args:
        source: Digest of the code that cells run with.
        folder: Where results are kept.
    """

    def __init__(self, source: str, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.stopped = False
        self._processes: set[subprocess.Popen[bytes]] = set()
        for name in ("cells", "scratch", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def run(self, cell: Cell) -> tuple[Cell, float]:
        """Run one cell.

        Returns:
            The cell and its processor time in seconds.

        Raises:
            CellError: If it fails, or the run was stopped.
        """
        if self.stopped:
            raise CellError("stopped")
        result = self.folder / "cells" / cell.file_name
        stem = f"{Path(cell.file_name).stem}-{os.getpid()}"
        spec = self.folder / "scratch" / f"{stem}.json"
        log = self.folder / "logs" / f"{Path(cell.file_name).stem}.txt"
        write(spec, {"cell": cell.as_json(), "source_hash": self.source})
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-m", "benchmarks.evidence.run_cell", str(spec), str(result)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **threads}, stdout=output, stderr=output
            )
            self._processes.add(process)
            status = process.wait()
            self._processes.discard(process)
        if status != 0:
            self.stopped = True
            raise CellError(f"{cell.name} seed {cell.seed} failed with status {status}; see {log}")
        seconds: float = json.loads(result.read_text(encoding="utf-8"))["cpu_seconds"]
        return cell, seconds

    def stop(self) -> None:
        """Start no further cell, and end those that run."""
        self.stopped = True
        for process in list(self._processes):
            process.terminate()
