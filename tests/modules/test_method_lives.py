"""Each method's configuration fits, resumes, validates and predicts on two processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .method_lives import KINDS, METHODS, fit
from .runs import QUIET, assert_same, pairs, parameters, write_model

pytestmark = [
    *QUIET,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:model.anchor has no effect"),  # stacked on the paper's
]

# What a pair adds depends on the pairs beside it, and each process has half of them: sorted values
# (aot), responses under each other's prompts (kto), running means and draws (bco, beta_dpo).
BATCHWISE = {"aot", "aot_unpaired", "kto", "bco", "beta_dpo"}


@pytest.fixture(scope="module")
def places(tmp_path_factory, model_folder):
    """Folders of two models and of pairs with scores."""
    root = tmp_path_factory.mktemp("methods")
    for split, count, start in (("train", 12, 0), ("validation", 4, 100)):
        rows = [
            {**row, "score_chosen": 5.0, "score_rejected": number % 4}
            for number, row in enumerate(pairs(count, start))
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{split}.jsonl").write_text(text, encoding="utf-8")
    other = write_model(tmp_path_factory.mktemp("other"), num_key_value_heads=1)
    return (model_folder, other), str(root)


@pytest.fixture(scope="module")
def lives(places, tmp_path_factory):
    """What became of each method on both processes."""
    folders, source = places
    results = tmp_path_factory.mktemp("lives") / "results"
    words = ["-W", "ignore", "-m", "modules.method_lives", *folders, source, str(results), *KINDS]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=850,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(f"{results}.{rank}") for rank in (0, 1)]


@pytest.mark.parametrize("name", KINDS)
def test_a_method_lives_on_two_processes(lives, places, tmp_path, name):
    (config,) = [path for path in METHODS if path.stem == name]
    first, second = (found[config.stem] for found in lives)
    assert_same(first["fitted"], second["fitted"])
    assert_same(first["resumed"], first["fitted"])
    moved = [(first["fitted"][key] - value).abs().max() for key, value in first["first"].items()]
    assert 5e-5 < max(moved) < 1
    assert all(math.isfinite(value) for step in first["logged"] for value in step.values())
    assert all(math.isfinite(value) for value in first["validated"].values())
    assert "val/loss/total" in first["validated"]
    rows = [index for found in (first, second) for batch in found["rows"] for index in batch]
    assert sorted(rows) == [0, 1, 2, 3]
    assert all(weights.isfinite().all() for weights in first["weights"])
    if config.stem not in BATCHWISE:
        folders, source = places
        _, one, _, _ = fit(config, folders, source, tmp_path, devices=1)
        assert_same(parameters(one), first["fitted"], atol=1e-5)
