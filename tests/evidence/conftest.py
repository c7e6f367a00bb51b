"""Evidence of a small grid, made up so that every sentence of the report can be told."""

import pytest

from benchmarks.evidence.collect import table_results
from benchmarks.evidence.grid import DEFAULT, Grid, Table, Task, Variant
from benchmarks.evidence.intervals import estimate


@pytest.fixture
def grid():
    task = Task(
        title="sums",
        config="configs/evidence/arithmetic.yaml",
        data={"source": "builtin:arithmetic"},
        headline="test/answers/right",
        selection="val/answers/right",
        generation={},
    )
    settings = {"0 %": Variant(), "40 %": Variant(flips=0.4)}
    return Grid(
        seeds=(0, 1, 2, 3, 4),
        tasks={"arithmetic": task},
        methods={"dpo": Variant(title="DPO"), "tidpo": Variant(title="TI-DPO")},
        tables={
            "table1": Table("Methods", ("dpo", "tidpo"), {"headline": "average accuracy"}),
            "b8": Table("Flips", ("dpo", "tidpo"), {"headline": "accuracy"}, settings),
        },
        curves=("dpo", "tidpo"),
    )


@pytest.fixture
def metrics():
    """TI-DPO is 0.1 better, give or take 0.01, without flips and as good as DPO with them."""
    noise = [0.0, 0.01, -0.01, 0.02, -0.02]
    base = [0.5, 0.6, 0.55, 0.52, 0.58]
    values = {
        ("table1", "dpo", DEFAULT): base,
        ("table1", "tidpo", DEFAULT): [b + 0.1 + n for b, n in zip(base, noise, strict=True)],
        ("b8", "dpo", "0 %"): base,
        ("b8", "tidpo", "0 %"): [b + 0.1 + n for b, n in zip(base, noise, strict=True)],
        ("b8", "dpo", "40 %"): [b - 0.2 for b in base],
        ("b8", "tidpo", "40 %"): [b - 0.2 + n for b, n in zip(base, noise, strict=True)],
    }
    return {
        ("arithmetic", *entry): {
            "test/answers/right": {str(seed): value for seed, value in enumerate(seeds)}
        }
        for entry, seeds in values.items()
    }


@pytest.fixture
def evidence(grid, metrics):
    def curve(last):
        means = [0.7 - (0.7 - last) * k / 11 for k in range(12)]
        points = [estimate({"0": mean, "1": mean + 0.02}) for mean in means]
        return {"train/loss/total": points}

    about = {"title": "sums", "headline": "test/answers/right", "selection": "val/answers/right"}
    return {
        "provenance": {
            "seeds": [0, 1, 2, 3, 4],
            "cells": 20,
            "cpu_seconds": 7200,
            "python": "3.11",
            "torch": "2.13",
            "machine": "x86_64",
            "tasks": {"arithmetic": about},
            "titles": {"dpo": "DPO", "tidpo": "TI-DPO"},
        },
        "tables": {
            name: {
                "title": table.title,
                "measures": table.measures,
                "results": {"arithmetic": table_results(grid, metrics, "arithmetic", name)},
            }
            for name, table in grid.tables.items()
        },
        "curves": {"arithmetic": {"dpo": curve(0.5), "tidpo": curve(0.6)}},
    }
