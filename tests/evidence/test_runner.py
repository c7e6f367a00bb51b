"""Cells run in processes of their own, once; a killed run leaves nothing half."""

import dataclasses
import json
import os

import pytest

from benchmarks.evidence import __main__ as commands
from benchmarks.evidence import runner
from benchmarks.evidence.grid import CONFIGS, Variant, cells_of, read_grid, read_yaml, seeded
from benchmarks.evidence.runner import Unit, UnitError, results_of, run_units
from benchmarks.report import ROOT
from lit_tidpo.errors import InputError

GRIDS = {name: CONFIGS / f"{name}.yaml" for name in ("grid", "quick", "tuning")}
CELL = Unit(
    "arithmetic",
    "cell:run_cell",
    {
        "configs": [read_yaml("configs/evidence/arithmetic.yaml")],
        "args": [
            *seeded(0),
            "--data.max_rows=4",
            "--data.batch_size=2",
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
            "--model.anchor.max_new_tokens=4",
        ],
        "train": True,
        "generation": {
            "data": "builtin:arithmetic", "seed": 0, "sampled_prompts": 2, "samples": 2, "tokens": 8
        },
    },
    "cell.py",
)  # fmt: skip


@pytest.mark.slow
def test_a_cell_runs_once(tmp_path, capsys):
    run_units([CELL, CELL], tmp_path, workers=1)
    kept = results_of([CELL], tmp_path)[0]
    metrics = kept["result"]["metrics"]
    assert {"test/rewards/accuracies", "val/rewards/accuracies", "cost/cpu_seconds"} <= {*metrics}
    assert 0 <= metrics["diversity/self_bleu"] <= 1
    assert len(kept["result"]["losses"]) == 2
    assert 0 < metrics["cost/cpu_seconds"] < kept["cpu_seconds"]
    files = tmp_path / CELL.key
    assert {file.name for file in files.iterdir()} == {"log.txt", "result.json"}
    made = (files / "result.json").stat().st_mtime_ns
    run_units([CELL], tmp_path, workers=1)
    assert (files / "result.json").stat().st_mtime_ns == made
    assert "1 units, 1 of them done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_unit_is_named_and_leaves_no_result(tmp_path):
    broken = dataclasses.replace(CELL, name="broken", arguments={**CELL.arguments, "configs": []})
    with pytest.raises(UnitError, match="broken failed"):
        run_units([broken], tmp_path, workers=1)
    assert [file.name for file in (tmp_path / broken.key).iterdir()] == ["log.txt"]
    assert "IndexError" in (tmp_path / broken.key / "log.txt").read_text()
    with pytest.raises(
        UnitError, match="1 units have no result of this code, for example 'broken'"
    ):
        results_of([broken], tmp_path)


def unit(**changes):
    """A unit that does nothing much."""
    return dataclasses.replace(Unit("name", "data:rows_of", {"a": 1}, "cell.py"), **changes)


def test_a_result_of_other_code_or_one_that_was_broken_off_is_none(tmp_path):
    (tmp_path / unit().key).mkdir()
    part = tmp_path / unit().key / "result.json.part"
    part.write_text('{"source_hash": "other"}')
    assert unit().result(tmp_path) is None
    os.rename(part, part.with_suffix(""))
    assert unit().result(tmp_path) is None
    part.with_suffix("").write_text(json.dumps({"source_hash": runner.source_hash("cell.py")}))
    assert unit().result(tmp_path) is not None
    assert unit(code="grid.py").result(tmp_path) is None


def test_units_are_told_apart_by_what_they_do():
    assert unit(name="other").key == unit().key
    assert unit(function="grid:read_yaml").key != unit().key
    assert unit(arguments={"a": 2}).key != unit().key


@pytest.mark.parametrize("path", GRIDS.values(), ids=GRIDS)
def test_the_shipped_grids_are_read(path):
    grid = read_grid(path)
    for task in grid.tasks.values():
        assert (ROOT / task.config).is_file()
        assert task.headline.startswith("test/")
        assert task.selection.startswith("val/")
    for variant in grid.methods.values():
        assert all((ROOT / config).is_file() for config in variant.configs)


def test_the_whole_grid_has_the_paper_s_tables_and_five_seeds():
    grid = read_grid(GRIDS["grid"])
    assert {"table1", "table2", "b8", "b9", "b11", "b12", "d1"} <= grid.tables.keys()
    assert len(grid.seeds) >= 5
    assert [v.flips for v in grid.tables["b8"].settings.values()] == [0, 0.1, 0.2, 0.4]
    # Tuning saw none of the seeds that are reported.
    assert not {*grid.seeds} & {*read_grid(GRIDS["tuning"]).seeds}


def test_a_grid_with_an_unknown_name_is_refused(tmp_path):
    text = GRIDS["quick"].read_text(encoding="utf-8")
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("methods: [dpo, tidpo]", "methods: [dpo, sgd]"), encoding="utf-8")
    with pytest.raises(InputError, match="sgd"):
        read_grid(path)
    path.write_text(text.replace("headline:", "headlines:"), encoding="utf-8")
    with pytest.raises(InputError, match="headlines"):
        read_grid(path)


def test_the_whole_grid_s_runs_are_as_many_as_the_findings_say(tmp_path):
    """Equal cells are shared; the data of flips are made by another test."""
    grid = read_grid(GRIDS["grid"])
    unflipped = {name: table for name, table in grid.tables.items() if name != "b8"}
    cells = cells_of(dataclasses.replace(grid, tables=unflipped, seeds=(0,)), tmp_path)
    flipped = 2 * 2 * 3  # tasks, methods and shares; without flips they are in other tables
    assert 5 * (len({cell.key for cell in cells.values()}) + flipped) == 280


def test_equal_cells_are_shared_and_others_are_not(grid, tmp_path):
    found = cells_of(grid, tmp_path)
    keys = {entry[1:]: cell.key for (entry, seed), cell in found.items() if seed == 0}
    assert keys["table1", "dpo", "default"] == keys["b8", "dpo", "0 %"]
    assert keys["b8", "dpo", "0 %"] != keys["b8", "dpo", "40 %"]
    assert len({cell.key for cell in found.values()}) == 2 * len(grid.seeds)
    arguments = found[("arithmetic", "b8", "dpo", "40 %"), 2].arguments
    assert {"--data.seed=2", "--model.seed=2", "--seed_everything=2"} <= {*arguments["args"]}
    assert "flips0.4-seed2" in arguments["generation"]["data"]


def test_settings_are_stacked_on_methods(grid, tmp_path):
    methods = {"tidpo": Variant(configs=("configs/recommended.yaml",), args=("--a=1",))}
    settings = {"one": Variant(args=("--b=2",), train=False)}
    table = dataclasses.replace(grid.tables["b8"], settings=settings, methods=("tidpo",))
    one = dataclasses.replace(grid, methods=methods, tables={"t": table}, seeds=(0,))
    arguments = next(iter(cells_of(one, tmp_path).values())).arguments
    paths = ("configs/evidence/arithmetic.yaml", "configs/recommended.yaml")
    assert arguments["configs"] == [read_yaml(path) for path in paths]
    assert arguments["args"][:2] == ["--a=1", "--b=2"]
    assert not arguments["train"]


def test_the_digest_of_the_source_sees_code_and_not_comments(tmp_path, monkeypatch):
    file = tmp_path / "lit_tidpo/module.py"
    file.parent.mkdir()
    monkeypatch.setattr(runner, "ROOT", tmp_path)

    def digest(text):
        file.write_text(text)
        runner.source_hash.cache_clear()
        return runner.source_hash("nothing")

    plain = digest('"""One."""\ndef f():\n    return 1\n')
    assert digest('"""Two."""\n# Why.\ndef f():\n    "Doc."\n    return 1\n') == plain
    assert digest('"""One."""\ndef f():\n    return 2\n') != plain


def test_results_of_the_quick_grid_must_stay_in_their_intervals(evidence, tmp_path, monkeypatch):
    stored = tmp_path / "intervals.json"
    monkeypatch.setattr(commands, "STORED", stored)
    commands.store(evidence, 2)
    low, high = json.loads(stored.read_text())["intervals"]["arithmetic dpo test/answers/right"]
    # t(4, 99.95 %) = 8.610, s = 0.04123, sqrt(1/5 + 1/2)
    assert high - low == pytest.approx(2 * 8.610 * 0.041231 * 0.7**0.5, abs=2e-3)
    assert commands.check(evidence).count("ok") == 2
    entry = evidence["tables"]["table1"]["results"]["arithmetic"]["dpo"]["default"]
    entry["metrics"]["test/answers/right"]["mean"] = high + 0.001
    with pytest.raises(commands.LeftIntervalError, match="LEFT arithmetic dpo"):
        commands.check(evidence)
    del entry["metrics"]["test/answers/right"]
    with pytest.raises(commands.LeftIntervalError, match="results and intervals differ"):
        commands.check(evidence)
