"""Cells run in processes of their own, once; a killed run leaves nothing half."""

import dataclasses
import json

import pytest

from benchmarks.evidence import cells as cells_module
from benchmarks.evidence.cells import Cell, cells_of, source_hash
from benchmarks.evidence.grid import GRID, QUICK, ROOT, TUNING, Variant, read_grid
from benchmarks.evidence.quick import LeftIntervalError, check, store
from benchmarks.evidence.runner import CellError, result_of, run_cells
from lit_tidpo.errors import InputError


def cell(**changes):
    made = Cell(
        name="arithmetic",
        seed=0,
        config_hash="0123456789abcdef" * 4,
        arguments=(
            f"--config={ROOT / 'configs/evidence/arithmetic.yaml'}",
            "--data.source=builtin:arithmetic",
            "--data.max_rows=4",
            "--data.batch_size=2",
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
            "--model.anchor.max_new_tokens=4",
        ),
        policy="builtin:arithmetic_policy",
        data=str(ROOT / "lit_tidpo/assets/arithmetic"),
        train=True,
        generation={"sampled_prompts": 2, "samples": 2, "tokens": 8},
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.slow
def test_a_cell_runs_once(tmp_path, capsys):
    run_cells([cell(), cell()], "source", tmp_path, workers=1)
    result = result_of(cell(), "source", tmp_path)
    metrics = result["metrics"]
    assert {"test/rewards/accuracies", "val/rewards/accuracies", "cost/cpu_seconds"} <= {*metrics}
    assert 0 <= metrics["diversity/self_bleu"] <= 1
    assert len(result["curves"]["train/loss/total"]) == 2
    assert 0 < metrics["cost/cpu_seconds"] < result["cpu_seconds"]
    assert [*(tmp_path / "scratch").iterdir()] == []
    made = (tmp_path / "cells" / cell().file_name).stat().st_mtime_ns
    run_cells([cell()], "source", tmp_path, workers=1)
    assert (tmp_path / "cells" / cell().file_name).stat().st_mtime_ns == made
    assert "1 cells, 1 of them done" in capsys.readouterr().out
    assert result_of(cell(), "other source", tmp_path) is None
    assert result_of(cell(config_hash="f" * 64), "source", tmp_path) is None


@pytest.mark.slow
def test_a_failing_cell_is_named_and_leaves_no_result(tmp_path):
    broken = cell(name="broken", arguments=("--config=no_such_file.yaml",))
    with pytest.raises(CellError, match="broken seed 0 failed"):
        run_cells([broken], "source", tmp_path, workers=1)
    assert [*(tmp_path / "cells").iterdir()] == []
    assert "no_such_file.yaml" in next((tmp_path / "logs").iterdir()).read_text()


def test_a_result_that_another_run_broke_off_is_not_there(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f".{cell().file_name}.1.part").write_text("{")
    assert result_of(cell(), "source", tmp_path) is None


@pytest.mark.parametrize("path", [GRID, QUICK, TUNING], ids=lambda path: path.stem)
def test_the_shipped_grids_are_read(path):
    grid = read_grid(path)
    for task in grid.tasks.values():
        assert (ROOT / task.config).is_file()
        assert task.headline.startswith("test/")
        assert task.selection.startswith("val/")
    for variant in grid.methods.values():
        assert all((ROOT / config).is_file() for config in variant.configs)


def test_the_whole_grid_has_the_paper_s_tables_and_five_seeds():
    grid = read_grid(GRID)
    assert {"table1", "table2", "b8", "b9", "b11", "b12", "d1"} <= grid.tables.keys()
    assert len(grid.seeds) >= 5
    assert [v.flips for v in grid.tables["b8"].settings.values()] == [0, 0.1, 0.2, 0.4]
    # Tuning saw none of the seeds that are reported.
    assert not {*grid.seeds} & {*read_grid(TUNING).seeds}


def test_a_grid_with_an_unknown_name_is_refused(tmp_path):
    text = QUICK.read_text(encoding="utf-8")
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("methods: [dpo, tidpo]", "methods: [dpo, sgd]"), encoding="utf-8")
    with pytest.raises(InputError, match="sgd"):
        read_grid(path)
    path.write_text(text.replace("headline:", "headlines:"), encoding="utf-8")
    with pytest.raises(InputError, match="headlines"):
        read_grid(path)


@pytest.fixture
def no_parsing(monkeypatch):
    """Configurations by their arguments alone: parsing takes seconds each."""
    config = '{"model": {"policy": {"path": "builtin:arithmetic_policy"}, "arguments": %s}}'
    monkeypatch.setattr(
        cells_module,
        "_printed_config",
        lambda arguments: config % json.dumps([a for a in arguments if "mix=0.7" not in a]),
    )


def test_equal_cells_are_shared_and_others_are_not(grid, tmp_path, no_parsing):
    found = cells_of(grid, tmp_path)
    names = {entry[1:]: cell.file_name for (entry, seed), cell in found.items() if seed == 0}
    assert names["table1", "dpo", "default"] == names["b8", "dpo", "0 %"]
    assert names["b8", "dpo", "0 %"] != names["b8", "dpo", "40 %"]
    assert len({cell.file_name for cell in found.values()}) == 2 * len(grid.seeds)
    one = found[("arithmetic", "b8", "dpo", "40 %"), 2]
    assert {"--data.seed=2", "--model.seed=2", "--seed_everything=2"} <= {*one.arguments}
    assert "flips0.4-seed2" in one.data


def test_a_setting_that_resolves_to_the_default_is_no_cell_of_its_own(grid, tmp_path, no_parsing):
    settings = {"default": Variant(), "0.7": Variant(args=("--model.weighting.mix=0.7",))}
    table = dataclasses.replace(grid.tables["table1"], settings=settings, methods=("tidpo",))
    found = cells_of(dataclasses.replace(grid, tables={"t": table}), tmp_path)
    assert len({cell.file_name for cell in found.values()}) == len(grid.seeds)


def test_the_digest_of_the_source_sees_code_and_not_comments(tmp_path, monkeypatch):
    file = tmp_path / "module.py"
    monkeypatch.setattr(cells_module, "ROOT", tmp_path)
    monkeypatch.setattr(cells_module, "_sources", lambda: [file])

    def digest(text):
        file.write_text(text)
        return source_hash()

    plain = digest('"""One."""\ndef f():\n    return 1\n')
    assert digest('"""Two."""\n# Why.\ndef f():\n    "Doc."\n    return 1\n') == plain
    assert digest('"""One."""\ndef f():\n    return 2\n') != plain


def test_results_of_the_quick_grid_must_stay_in_their_intervals(
    evidence, grid, tmp_path, monkeypatch
):
    stored = tmp_path / "intervals.json"
    monkeypatch.setattr("benchmarks.evidence.quick.STORED", stored)
    store(evidence, dataclasses.replace(grid, seeds=(0, 1)))
    low, high = json.loads(stored.read_text())["intervals"]["arithmetic dpo test/answers/right"]
    # t(4, 99.95 %) = 8.610, s = 0.04123, sqrt(1/5 + 1/2)
    assert high - low == pytest.approx(2 * 8.610 * 0.041231 * 0.7**0.5, abs=2e-3)
    assert check(evidence).count("ok") == 2
    entry = evidence["tables"]["table1"]["results"]["arithmetic"]["dpo"]["default"]
    entry["metrics"]["test/answers/right"]["mean"] = high + 0.001
    with pytest.raises(LeftIntervalError, match="LEFT arithmetic dpo"):
        check(evidence)
    del entry["metrics"]["test/answers/right"]
    with pytest.raises(LeftIntervalError, match="results and intervals differ"):
        check(evidence)
