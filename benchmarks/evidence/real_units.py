"""The units of the study on a real model, ``configs/evidence/real/defects.yaml``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.evidence.grid import Grid, cells_of, read_yaml, starts_of
from benchmarks.evidence.published import made
from benchmarks.evidence.runner import Unit

CODE = "defects/*.py data.py intervals.py"
STUDY = "configs/evidence/real/defects.yaml"
CHECKPOINTS = {"during": "halfway.ckpt", "after": "policy.ckpt"}  # of a cell
LEFT_OUT = {  # what needs a model of its own, and integrated gradients, 12 times a gradient's cost
    "detector",
    "gradient max_logit integrated",
    "gradient response_logp integrated",
}


def measurements(grid: Grid, folder: Path) -> dict[str, dict[str, Unit]]:
    """By source and depth (``before``, ``during`` or ``after`` plain DPO) the unit that measures.

    Those after the start take the policies of the grid's cells. A grid without a source's task has
    none.
    """
    study, shipped = read_yaml(STUDY), read_yaml("configs/evidence/defects.yaml")
    starts = dict(zip(grid.tasks, starts_of(grid, folder), strict=True))
    cells = cells_of(grid, folder)
    units: dict[str, dict[str, Unit]] = {}
    for name, source in study["sources"].items():
        if source["task"] not in grid.tasks:
            continue
        task = grid.tasks[source["task"]]
        data = made(source.get("data") or task.data, folder / "data")["source"]
        own = str(folder / starts[source["task"]].key / "model")
        common = {
            "source": data,
            "start": source.get("policy", own),
            "options": {
                key: {name: each for name, each in shipped[key].items() if name not in LEFT_OUT}
                for key in ("estimators", "mitigations")
            },
            "extent": study["extent"],
        }
        trained = {
            unit.key: folder / unit.key
            for (entry, _), unit in cells.items()
            if (entry[0], *entry[2:]) == (source["task"], "dpo", "default") and source["trained"]
        }
        depths: dict[str, list[str]] = {"before": []}
        for depth, file in CHECKPOINTS.items() if trained else ():
            depths[depth] = [str(cell / file) for cell in trained.values()]
        units[name] = {
            depth: Unit(
                f"the estimators on {name}, {depth}",
                "defects.real_study:measure",
                {**common, "policies": policies},
                CODE,
            )
            for depth, policies in depths.items()
        }
    return units


def policies_exist(unit: Unit) -> bool:
    """Whether the cells whose policies a unit measures have been run."""
    return all(Path(path).is_file() for path in unit.arguments["policies"])
