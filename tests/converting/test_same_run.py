"""A run of ``trl dpo`` and the one of its converted configuration have the same losses."""

import csv
import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from lit_tidpo.cli import main
from lit_tidpo.locations import locate

ROWS = [
    {"prompt": f"def f{i}(a):", "chosen": f"\n    return a + {i}", "rejected": f"\n    return {i}"}
    for i in range(4)
]
COMMON = {
    "dataset_name": "rows",
    "max_steps": 3,
    "learning_rate": "1e-3",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 1,
    "max_grad_norm": 0.5,
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
}


def theirs(file):
    """Losses of ``trl dpo --config FILE``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, TrlParser
        from trl.scripts.dpo import main as trl_dpo

        parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig))
        with torch.random.fork_rng():
            trl_dpo(*parser.parse_args_and_config(["--config", file]))
    state = json.loads(Path("out/checkpoint-3/trainer_state.json").read_text("utf-8"))
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def ours(file):
    main(["convert", file, "--output", "ours.yaml"])
    main(["fit", "--config", "ours.yaml", "--trainer.enable_progress_bar", "false"])
    (metrics,) = Path("out").glob("lightning_logs/version_*/metrics.csv")
    with metrics.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [float(row["train/loss/total"]) for row in rows if row["train/loss/total"]]


@pytest.mark.filterwarnings("ignore:split 'train'.*truncated")
@pytest.mark.parametrize(
    "method",
    [
        {"loss_type": ["sigmoid", "apo_zero"], "loss_weights": [0.8, 0.2], "beta": 0.3},
        pytest.param(
            {
                "loss_type": "robust",
                "label_smoothing": 0.1,
                "optim": "rmsprop",
                "lr_scheduler_type": "cosine",
                "max_length": 11,
                "gradient_checkpointing": True,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["many losses", "cut responses"],
)
def test_the_losses_are_theirs(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    Path("rows").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    Path("rows/train.jsonl").write_text(lines, encoding="utf-8")
    settings = {**COMMON, **method, "output_dir": "out"}
    settings["model_name_or_path"] = str(locate("builtin:policy"))
    Path("theirs.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    expected = theirs("theirs.yaml")
    assert len(expected) == 3
    assert expected[2] < expected[0] - 1e-3
    assert ours("theirs.yaml") == pytest.approx(expected, rel=1e-4)
