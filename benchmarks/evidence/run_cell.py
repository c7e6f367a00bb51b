"""Run one cell in a process of its own: ``python -m benchmarks.evidence.run_cell SPEC RESULT``.

``SPEC`` is a cell as JSON. Nothing but ``RESULT`` stays, and that appears when it is complete.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.generation import generated_metrics
from lit_tidpo.cli import main
from lit_tidpo.locations import locate
from lit_tidpo.models.export import export_checkpoint

_CURVES = ("train/loss/", "train/rewards/accuracies")


def run_cell(cell: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Train, test and generate.

    Args:
        cell: Fields of :class:`benchmarks.evidence.cells.Cell`.
        scratch: An empty folder for logs and checkpoint.

    Returns:
        ``metrics`` after training by name, ``curves`` over training steps, and seconds.
    """
    started = (time.process_time(), time.perf_counter())
    common = [
        *cell["arguments"],
        f"--trainer.default_root_dir={scratch}",
        f"--trainer.logger.init_args.save_dir={scratch}",
        f"--trainer.callbacks.init_args.dirpath={scratch}",  # of the last one, the checkpoint,
    ]
    model, curves, metrics = locate(cell["policy"]), {}, {}
    if cell["train"]:
        main(["fit", *common])
        rows = _log(scratch / "logs/version_0/metrics.csv")
        metrics, curves = _last(rows, ("val/", "cost/")), _curves(rows)
        main(["test", *common, f"--ckpt_path={scratch / 'policy.ckpt'}"])
        export_checkpoint(scratch / "policy.ckpt", scratch / "model")
        model = str(scratch / "model")
    else:
        main(["test", *common])
    version = "version_1" if cell["train"] else "version_0"
    metrics |= _last(_log(scratch / f"logs/{version}/metrics.csv"), ("test/",))
    metrics |= generated_metrics(model, Path(cell["data"]), cell["generation"], cell["seed"])
    return {
        "metrics": metrics,
        "curves": curves,
        "cpu_seconds": time.process_time() - started[0],
        "wall_seconds": time.perf_counter() - started[1],
    }


def _log(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _last(rows: list[dict[str, str]], prefixes: tuple[str, ...]) -> dict[str, float]:
    """The last value of each metric."""
    return {
        name: float(value)
        for row in rows
        for name, value in row.items()
        if value and name.startswith(prefixes)
    }


def _curves(rows: list[dict[str, str]]) -> dict[str, list[float]]:
    """Values of each training step."""
    names = [name for name in rows[0] if name.startswith(_CURVES)]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    spec, result = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the log of a grid is long enough
    job = json.loads(spec.read_text(encoding="utf-8"))
    folder = spec.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outcome = run_cell(job["cell"], folder)
    write(result, {"cell": job["cell"], "source_hash": job["source_hash"], **outcome})
    shutil.rmtree(folder)
    spec.unlink()
