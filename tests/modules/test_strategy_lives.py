"""A run under each strategy: what several processes fit, resume and predict is what one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_tidpo.cli import main

from .runs import QUIET
from .strategy_lives import MESH, STRATEGIES, TRAINING_ALONE, command, live

pytestmark = [
    *QUIET,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
TESTS = Path(__file__).parents[1]


ALL = [*STRATEGIES, *MESH]
FOLDERS = ["fsdp2", "tensor_parallel", *MESH]  # which know no layout


@pytest.fixture(scope="module")
def lives(model_folder, source, tmp_path_factory):
    """A folder with a run under each strategy on several processes, and one on one process."""
    root = tmp_path_factory.mktemp("lives")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for devices, names in (("2", STRATEGIES), ("4", MESH), ("1", FOLDERS)):
        words = ["-m", "modules.strategy_lives", devices, model_folder, source, str(root), *names]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *words],
            cwd=TESTS,
            env=environment,
            timeout=850,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    live("ddp", model_folder, source, root / "one", devices=1)
    return root


def predictions(file):
    return [json.loads(line) for line in next(file.rglob("tokens.jsonl")).read_text().splitlines()]


def exported(checkpoint):
    folder = checkpoint.parent / f"{checkpoint.stem}-exported"
    if not folder.exists():
        main(["export", str(checkpoint), str(folder)])
    return load_file(folder / "model.safetensors")


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("name", ALL)
def test_several_processes_do_what_one_does(lives, name):
    """Weights after training and after going on from the middle, by the same ``export``."""
    one = exported(lives / "one" / "ddp" / "fit" / "step=4.ckpt")
    assert_close(exported(lives / name / "fit" / "step=4.ckpt"), one)
    assert_close(exported(lives / name / "resumed" / "step=4.ckpt"), one)


@pytest.mark.parametrize("name", ["tensor_parallel", *MESH])
def test_tensor_parallelism_goes_on_from_sharded_layers(lives, name):
    one = exported(lives / "one" / "ddp" / "fit" / "step=4.ckpt")
    assert_close(exported(lives / name / "crossed" / "step=4.ckpt"), one)


@pytest.mark.parametrize("name", FOLDERS)
def test_one_process_goes_on_from_a_folder(lives, name):
    """With optimizer and all, though the four rows of a batch were split over other ranks."""
    one = exported(lives / "one" / "ddp" / "fit" / "step=4.ckpt")
    assert_close(exported(lives / name / "alone" / "step=4.ckpt"), one)


@pytest.mark.parametrize("name", [name for name in ALL if name not in TRAINING_ALONE])
def test_each_row_is_predicted_once(lives, name):
    rows, expected = (
        predictions(root / "predict") for root in (lives / name, lives / "one" / "ddp")
    )
    assert [(row["index"], row["role"]) for row in rows] == [
        (index, role) for index in range(5) for role in ("chosen", "rejected")
    ]
    for row, other in zip(rows, expected, strict=True):
        for quantity in ("policy_logps", "log_ratios", "weights", "scores"):
            assert row[quantity] == pytest.approx(other[quantity], abs=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_one_process_reads_what_several_wrote(lives, model_folder, source, tmp_path, name):
    path = f"--ckpt_path={lives / name / 'fit' / 'step=4.ckpt'}"
    command("predict", model_folder, source, tmp_path, path, "--data.predict_split=validation")
    expected = predictions(lives / "one" / "ddp" / "predict")
    for row, other in zip(predictions(tmp_path), expected, strict=True):
        assert row["policy_logps"] == pytest.approx(other["policy_logps"], abs=1e-4)


def test_one_process_goes_on_from_a_file(lives, model_folder, source, tmp_path):
    path = f"--ckpt_path={lives / 'ddp' / 'fit' / 'step=2.ckpt'}"
    command("fit", model_folder, source, tmp_path, path)
    one = exported(lives / "one" / "ddp" / "fit" / "step=4.ckpt")
    assert_close(exported(tmp_path / "step=4.ckpt"), one)


def test_a_folder_is_told_from_a_file_and_from_half_a_folder(
    lives, model_folder, source, tmp_path, capsys
):
    folder = lives / "fsdp2" / "fit" / "step=2.ckpt"
    with pytest.raises(SystemExit):
        command("fit", model_folder, source, tmp_path, f"--ckpt_path={folder}")
    assert "is a folder, whose optimizer the strategy that wrote it" in capsys.readouterr().err
    half = shutil.copytree(folder, tmp_path / "half.ckpt")
    (half / "meta.pt").unlink()
    with pytest.raises(SystemExit):
        main(["export", str(half), str(tmp_path / "exported")])
    assert "is no checkpoint: expected a file, or a folder with" in capsys.readouterr().err
