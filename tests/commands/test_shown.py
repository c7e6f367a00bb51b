"""What a run shows: its values, what it wrote, what can be typed next, and no noise of others."""

import csv
import importlib
import logging
import re
import shlex
import warnings
from importlib.util import find_spec

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_tidpo.callbacks.progress import _EndsWithSteps, _RichBar, _TQDMBar
from lit_tidpo.callbacks.run_summary import RunSummary
from lit_tidpo.cli import main
from lit_tidpo.commands.quiet import quiet


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_shows_its_values_and_what_to_type_next(run, tmp_path, capsys, caplog, monkeypatch):
    """The commands that it names are typed."""
    monkeypatch.setenv("COLUMNS", "200")  # for tqdm
    if find_spec("rich"):  # keeps the width of an earlier test
        size = importlib.import_module("rich.console").ConsoleDimensions(200, 25)
        monkeypatch.setattr("rich.console.Console.size", size)
    options = ["--trainer.num_sanity_val_steps=-1", "--trainer.limit_val_batches=1.0"]
    options += ["--trainer.log_every_n_steps=3", "--trainer.enable_progress_bar=true"]
    run(
        "fit",
        "--run=shown run",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=x",
        *options,
    )
    bar = capsys.readouterr().out
    assert "4/4" in bar
    assert {"loss/total", "rewards/accuracies", "rewards/margins"} <= {
        *re.findall(r"train/([\w/]+)", bar)
    }
    with (tmp_path / "runs" / "shown run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    before, first = (
        next(row for row in rows if row[name]) for name in ("val/loss/total", "train/loss/total")
    )
    assert (before["step"], first["step"]) == ("0", "0")
    for value in (before["val/rewards/margins"], first["train/rewards/margins"]):
        assert float(value) == 0.0  # the policy is its reference
    assert "Tip" not in caplog.text

    words = r"trained [\d,]+ parameters in (\d+) steps, of data with (\d+) rows"
    assert re.findall(words, caplog.text) == [("4", "12")]
    commands = re.findall(r"next: lit-tidpo (.*)", caplog.text)
    assert [words.split()[0] for words in commands] == ["predict", "export"]
    predict, export = map(shlex.split, commands)
    caplog.clear()
    main([*predict, "--tokens.path=t.jsonl", "--data.predict_split=train"])
    (count,) = re.findall(r"tokens: t.jsonl \((\d+) rows\)", caplog.text)
    assert int(count) == len((tmp_path / "t.jsonl").read_text().splitlines()) == 24
    main(export)
    assert re.search(
        r"exported [\d.]+ MB: .*from_pretrained\('exported'\)", capsys.readouterr().out
    )
    assert (tmp_path / "exported" / "config.json").exists()


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ({"max_steps": 2}, r"\(trainer.max_steps=2\); to go on, raise --trainer.max_steps\n"),
        (
            {"max_steps": 1, "max_epochs": 9},
            r"\(trainer.max_steps=1, .*\); to go on, raise .*_steps and --trainer.max_epochs",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_complete_run_says_so(ends, told, tmp_path, caplog):
    def fit(ckpt_path=None, **options):
        quiet_options = {"enable_progress_bar": False, "limit_val_batches": 0, "logger": False}
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=[RunSummary()],
            **quiet_options,
            **options,
        )
        caplog.clear()
        trainer.fit(BoringModel(), ckpt_path=ckpt_path)
        return trainer.checkpoint_callback.best_model_path

    saved = fit(max_steps=2)
    assert "trained 66 parameters in 2 steps, of data with 64 rows" in caplog.text
    fit(saved, **ends)
    assert re.search(rf"nothing was left to train: .* complete at step 2 {told}", caplog.text)


@pytest.mark.parametrize("kind", [_TQDMBar, _RichBar])
def test_the_bar_ends_with_the_run(kind, tmp_path):
    """4 steps of 2 batches are an epoch of 6 batches and a third of the next."""
    if kind is _RichBar:
        pytest.importorskip("rich")
    totals = []

    class Bar(kind):
        def on_train_epoch_start(self, *rest):
            super().on_train_epoch_start(*rest)
            totals.append(self.total_train_batches)

    assert issubclass(kind, (_EndsWithSteps, TQDMProgressBar, RichProgressBar))
    Trainer(
        accelerator="cpu",
        max_steps=4,
        accumulate_grad_batches=2,
        limit_train_batches=6,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Bar()],
    ).fit(BoringModel())
    assert totals == [6, 2]


def test_the_bar_of_a_run_that_steps_alone_end_has_no_last_epoch():
    pytest.importorskip("rich")
    bar = _RichBar()
    bar._trainer = Trainer(accelerator="cpu", max_steps=4, max_epochs=-1, logger=False)
    assert bar._get_train_description(0).strip() == "Epoch 0"


def test_noise_is_hidden_and_warnings_are_one_line_each(caplog):
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    caplog.set_level(logging.INFO)
    tip, deprecated = "💡 Tip: buy this", "`isinstance(treespec, LeafSpec)` is deprecated, use it"
    ours = "model.anchor\nhas no effect"

    def say():
        log.info(tip)
        log.info("split 'train': 3 pairs")
        for text in (deprecated, ours):
            warnings.warn_explicit(text, UserWarning, "file.py", 3)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            say()
            line = warnings.formatwarning(ours, UserWarning, "file.py", 3)
        assert line == "lit-tidpo: warning: model.anchor has no effect\n"
        assert [str(each.message) for each in seen] == [ours]
        assert caplog.messages == ["split 'train': 3 pairs"]
        say()  # as --debug leaves it
        assert [str(each.message) for each in seen] == [ours, deprecated, ours]
        assert tip in caplog.messages
        assert "file.py:3" in warnings.formatwarning(ours, UserWarning, "file.py", 3)
