"""Evidence of a small grid, made up so that every sentence of the report can be told."""

import gzip
import json
import warnings

import pytest

from benchmarks.evidence import runner
from benchmarks.evidence.collect import table_results
from benchmarks.evidence.grid import DEFAULT, Grid, Table, Task, Variant
from benchmarks.evidence.intervals import estimate


@pytest.fixture(scope="session")
def run_here():
    """Takes the place of ``runner._start``: in this process, which saves the imports of another."""

    def start(unit, folder, end):
        (folder / unit.key).mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in a process of its own
            runner._run(unit, folder / unit.key)
        return True

    return start


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


RIGHT = "She has 2*3=<<2*3=6>>6 eggs\nand sells 6-1=<<6-1=5>>5.\nA: 5"
WRONG = "She has 2*3=<<2*3=6>>6 eggs\nand sells 6+1=<<6+1=7>>7.\nA: 7"


@pytest.fixture
def published_folder(tmp_path, monkeypatch):
    """A problem whose second solution is wrong at its second line, and dialogues."""

    def write(name, rows):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def solved(number, text):
        return {"is_correct": text == RIGHT, "solution": text.replace("eggs", f"eggs{number}")}

    write(
        "gsm8k_model_solutions",
        [
            {
                "question": f"Question {number}?",
                "ground_truth": f"{RIGHT}",
                "6b": solved(number, WRONG),
                "175b": solved(number, RIGHT),
                "again": solved(number, RIGHT),
            }
            for number in range(6)
        ],
    )
    write("gsm8k_train", [{"question": "2+3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}])
    turns = "\n\nHuman: Hello {}\n\nAssistant: {}"
    said = [(n // 2, word) for n, word in enumerate(["Yes", "Well", "Ah", "Oh"])]
    write(
        "hh_harmless_test",
        [
            *({"chosen": turns.format(n, w), "rejected": turns.format(n, "No")} for n, w in said),
            {"chosen": turns.format(9, ""), "rejected": turns.format(9, "")},
        ],
    )
    monkeypatch.setenv("EVIDENCE_DATA", str(tmp_path))
    return tmp_path
