"""What a resumed run makes of options that its checkpoint does not have (issue: nothing silent)."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from lit_tidpo.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
ROWS = [{"prompt": f"f{i}(", "chosen": f"{i})", "rejected": f"{i + 1})"} for i in range(12)]


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Arguments of a run of plain DPO in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def build(subcommand, *options):
        return [
            subcommand,
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=out",
            "--model.policy.path=builtin:policy",
            "--model.policy.init=random",
            '--model.losses={"preference": "dpo"}',
            "--data.source=data.jsonl",
            "--data.batch_size=2",
            "--data.validation_fraction=0.2",
            *options,
        ]

    return build


ADAMW = ["--model.optimizer=AdamW", "--model.optimizer.lr=0.001"]


@pytest.fixture
def checkpoint(arguments, tmp_path):
    """A checkpoint after two steps."""
    main(arguments("fit", *ADAMW, "--trainer.max_steps=2"))
    return str(next((tmp_path / "out").rglob("*.ckpt")))


def test_another_learning_rate_is_applied_with_a_word(arguments, checkpoint, tmp_path):
    options = [*ADAMW[:1], "--model.optimizer.lr=0.1", "--model.optimizer.weight_decay=0.5"]
    with pytest.warns(UserWarning, match=r"lr=0.1 \(was 0.001\), weight_decay=0.5 \(was 0.01\)"):
        main(arguments("fit", *options, "--trainer.max_steps=4", f"--ckpt_path={checkpoint}"))
    last = max((tmp_path / "out").rglob("*step=4.ckpt"))
    saved = torch.load(last, weights_only=True)
    (group,) = saved["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.1, 0.1, 0.5)
    assert saved["lr_schedulers"][0]["base_lrs"] == [0.1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.optimizer=SGD", "--model.optimizer.lr=0.1"], "optimizer is AdamW, but .* SGD"),
        (["--model.policy.lora.r=4"], "policy.lora"),
        (["--trainer.max_steps=-5"], "max_steps"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches"),
        (["--ckpt_path=best"], "give the file"),
        (["--model.optimizer=AdamW", "--model.optimizer.lr=-1"], "learning rate"),
        (["--trainer.logger=WandbLogger"], "wandb"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_in_one_line(
    arguments, checkpoint, capsys, options, words
):
    path = [] if any("ckpt_path" in option for option in options) else [f"--ckpt_path={checkpoint}"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments("fit", "--trainer.max_steps=4", *path, *ADAMW, *options))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("lit-tidpo: error:")
    assert re.search(words, line)


def test_the_last_checkpoint_is_found_in_a_new_process_or_refused(arguments, capsys):
    test = arguments("test", "--data.test_split=train", "--ckpt_path=last", *ADAMW)
    with pytest.raises(SystemExit):
        main(test)
    assert "there is no last*.ckpt" in capsys.readouterr().err
    saver = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    fit = arguments("fit", "--model.optimizer=AdamW", "--model.optimizer.lr=0.01", *saver)
    main([*fit, "--trainer.max_steps=4"])
    capsys.readouterr()
    main(test)
    shown = capsys.readouterr().out
    loss = float(shown.split("test/loss/total")[1].split("│")[1])
    assert loss < 0.6  # an untrained policy has 0.693


def test_debug_shows_where_an_error_came_from(arguments):
    with pytest.raises(ValueError, match="give the file"):
        main([*arguments("fit", "--ckpt_path=best"), "--debug"])


@pytest.mark.slow
def test_sigterm_saves_and_does_not_end_in_success(arguments, tmp_path):
    options = [*ADAMW, "--trainer.max_steps=100000", "--trainer.max_epochs=-1"]
    command = [sys.executable, "-m", "lit_tidpo", *arguments("fit", *options)]
    command += ["--trainer.log_every_n_steps=1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while not list((tmp_path / "out").rglob("*.ckpt")):  # the first epoch is over
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 128 + signal.SIGTERM
    (saved,) = (tmp_path / "out").rglob("last-sigterm.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] > 0
