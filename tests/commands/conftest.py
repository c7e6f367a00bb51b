"""A command on a tiny model and tiny data."""

import json

import pytest
from modules.runs import pairs, write_model

from lit_tidpo.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, monkeypatch, model):
    """Run a command in an empty folder, on a tiny model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(12)))

    def run(subcommand, *options):
        quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        quiet += ["--trainer.log_every_n_steps=1", "--trainer.enable_model_summary=false"]
        quiet += [f"--model.policy.path={model}", '--model.losses={"preference": "dpo"}']
        quiet += ["--model.optimizer=AdamW", "--model.optimizer.lr=0.01"]
        quiet += ["--data.source=data.jsonl", "--data.batch_size=2", "--data.max_length=48"]
        quiet += [f"--data.cache_dir={tmp_path / 'cache'}"]
        quiet += ["--data.validation_split=train", "--data.test_split=train"]
        if subcommand == "fit":
            quiet += ["--trainer.max_steps=4", "--trainer.limit_val_batches=1"]
        main([subcommand, *quiet, *options])

    return run
