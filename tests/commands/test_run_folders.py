"""Named runs: the same line starts, goes on and finds; nothing of another run is taken or lost."""

import csv
import os

import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Callback

from lit_tidpo.callbacks import ReportPage
from lit_tidpo.commands.checkpoints import best, newest
from lit_tidpo.commands.run_folders import named_folder
from lit_tidpo.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
SAVER = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=2"]
SAVER += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.monitor=train/loss/total"]
SAVER += ["--trainer.callbacks.mode=max"]  # so that the best is not the last
CSV = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=elsewhere"]
NO_LOGGER = ["--trainer.logger=false"]


class Killed(Callback):
    """Ends the run as a kill would: without a word to Lightning."""

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 3:
            raise SystemExit(137)


def error_of(capsys, run, *words):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(newest([folder / "checkpoints"]), weights_only=True)["state_dict"]


def test_the_same_line_starts_goes_on_and_ends_like_a_run_that_nothing_stopped(
    run, tmp_path, capsys, caplog
):
    """Weights, curve and all; a second process and a run of that name by mistake are refused."""
    line = ["fit", "--run=cut", "--resume", *SAVER, *CSV]
    line += ["--trainer.logger.flush_logs_every_n_steps=1"]
    with pytest.raises(SystemExit, match="137"):
        run(*line, f"--trainer.callbacks+={__name__}.Killed")
    cut = tmp_path / "runs" / "cut"
    assert [row["step"] for row in rows(cut)][-1] == "2"  # a step beyond the checkpoint
    run(*line)
    run("fit", "--run=whole", *line[2:])
    whole = tmp_path / "runs" / "whole"
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(cut).items())
    assert rows(cut) == rows(whole)
    assert not (tmp_path / "elsewhere").exists()
    assert "holds a run: add --resume" in error_of(capsys, run, "fit", "--run=cut", *SAVER)
    with FileLock(cut / ".running"):
        assert "another process trains in" in error_of(capsys, run, *line)
    caplog.clear()
    run("test", "--run=cut", "--ckpt_path=best", *CSV)
    assert f"Takes {best_of(cut)} " in caplog.text
    assert (cut / "test" / "version_0" / "metrics.csv").exists()
    assert rows(cut) == rows(whole)
    error = error_of(capsys, run, "test", "--run=other")
    assert "run='other': there is no checkpoint in" in error


def best_of(folder):
    """By the scores themselves."""
    content = torch.load(newest([folder / "checkpoints"]), weights_only=True)
    (state,) = (each for each in content["callbacks"].values() if each.get("monitor"))
    return max(state["best_k_models"], key=state["best_k_models"].get)


def kept(file, path=None):
    """A checkpoint whose saver knows a best one."""
    file.parent.mkdir(exist_ok=True)
    saver = {"monitor": "loss", "best_model_path": str(path or file)}
    torch.save({"callbacks": {"ModelCheckpoint{}": saver}, "state_dict": {}}, file)
    return file


def test_the_best_checkpoint_of_a_folder_that_was_moved(tmp_path):
    one = kept(tmp_path / "old" / "one.ckpt")
    kept(tmp_path / "old" / "two.ckpt", one)
    (tmp_path / "old").rename(tmp_path / "new")
    assert best(tmp_path / "new" / "two.ckpt") == tmp_path / "new" / "one.ckpt"
    (tmp_path / "new" / "one.ckpt").unlink()
    with pytest.raises(InputError, match="is gone"):
        best(tmp_path / "new" / "two.ckpt")


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    good, later = kept(tmp_path / "good.ckpt"), kept(tmp_path / "later.ckpt")
    content = bytearray(later.read_bytes())
    content[content.index(b"monitor")] ^= 1
    later.write_bytes(content)
    (tmp_path / "sharded.ckpt").mkdir()
    for number, name in enumerate(("good", "later", "sharded")):
        os.utime(tmp_path / f"{name}.ckpt", (number, number))
    with pytest.warns(UserWarning, match="passed over: checkpoint .*(later|sharded)"):
        assert newest([tmp_path]) == good


def test_without_a_name_last_and_best_are_those_of_the_folder_alone(run, tmp_path, capsys):
    last = [*SAVER, "--trainer.callbacks.save_last=true"]
    run("fit", *last, "--trainer.default_root_dir=a", *NO_LOGGER)
    run("validate", "--ckpt_path=last", "--trainer.default_root_dir=a", *NO_LOGGER)
    run("validate", "--ckpt_path=best", "--trainer.default_root_dir=a", *NO_LOGGER)
    # a folder above that of the run is not the run's
    error = error_of(capsys, run, "validate", "--ckpt_path=last", *NO_LOGGER)
    assert "there is no last*.ckpt" in error


def test_two_runs_in_one_folder_without_a_logger_keep_checkpoints_and_reports_apart(run, tmp_path):
    pytest.importorskip("matplotlib")
    for seed in (0, 1):
        page = ["--trainer.callbacks+=lit_tidpo.callbacks.ReportPage"]
        run("fit", *NO_LOGGER, *page, f"--data.seed={seed}")
    (first,) = (tmp_path / "checkpoints").iterdir()
    (second,) = (tmp_path / "checkpoints-1").iterdir()
    assert first.name == second.name
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "report-1.html").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, False, "x"), None),
        ((None, True, "x"), "x"),
        (("a", True, "x"), "x/a"),
        (("a", False, None), "runs/a"),
    ],
)
def test_where_a_run_is(given, expected):
    assert (str(named_folder(*given)) if expected else named_folder(*given)) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [((None, True, None), "add --run NAME"), (("a/b", False, None), "expected a name")],
)
def test_a_run_that_has_no_place_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        named_folder(*given)


def test_a_named_run_takes_no_other_folder_of_checkpoints(run, capsys):
    words = ["fit", "--run=a", *SAVER, "--trainer.callbacks.dirpath=b"]
    assert "a named run keeps its checkpoints in its own folder" in error_of(capsys, run, *words)


def test_a_metric_that_nothing_logs_is_refused_before_the_work(run, capsys):
    page = ["--trainer.callbacks+=lit_tidpo.callbacks.ReportPage"]
    page += ["--trainer.callbacks.metrics=[val/reward/margin]"]
    error = error_of(capsys, run, "fit", *NO_LOGGER, *page)
    assert "'val/reward/margin' is none that is logged" in error
    assert "'val/rewards/margins'" in error


def test_the_report_goes_on_with_its_curves():
    page, later = ReportPage(), ReportPage()
    page._curves["train/loss/total"].append((1, 0.5))
    later.load_state_dict(page.state_dict())
    later._curves["train/loss/total"].append((2, 0.25))
    assert later.state_dict() == {"curves": {"train/loss/total": [(1, 0.5), (2, 0.25)]}}
