"""A run that is resumed in the middle of an epoch goes on with the next row."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_tidpo.data import PreferenceDataModule

from .order import Order

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning's
    # A resumed run need not save again, and its warning about that is not what is tested.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]


def order():
    return Order(lambda batch, batch_idx: (batch_idx, batch.index.tolist()))


@pytest.fixture
def fit(tmp_path, write_rows, numbered_rows, tokenizer_folder):
    """Train over the epochs with 11 rows in batches of 3; give the order."""
    write_rows(numbered_rows(11), "train.jsonl")
    write_rows(numbered_rows(2), "validation.jsonl")

    def run(data=None, ckpt_path=None, callbacks=None, **trainer):
        options = {"batch_size": 3, "seed": 5, **(data or {})}
        model = order()
        Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=bool(callbacks),
            num_sanity_val_steps=0,
            callbacks=callbacks,
            **{"max_epochs": 2, **trainer},
        ).fit(
            model,
            datamodule=PreferenceDataModule(str(tmp_path), tokenizer_folder, **options),
            ckpt_path=ckpt_path,
        )
        return model.seen

    return run


def checkpoint(folder, **when):
    return ModelCheckpoint(folder / "saved", filename="{step}", save_top_k=-1, **when)


STREAM = {"streaming": True, "shuffle_buffer": 4}


@pytest.mark.parametrize(
    ("data", "trainer"),
    [
        pytest.param({}, {"max_epochs": 3}, id="main process"),
        pytest.param({"num_workers": 2}, {}, id="two workers"),
        pytest.param({"group_by_length": True, "drop_last": True}, {}, id="grouped"),
        pytest.param({}, {"accumulate_grad_batches": 2}, id="accumulated"),
        pytest.param({}, {"limit_train_batches": 2}, id="limited"),
        pytest.param({}, {"val_check_interval": 2}, id="validated"),
        pytest.param(STREAM, {"max_epochs": 3}, id="stream"),
        pytest.param({**STREAM, "num_workers": 1}, {}, id="stream, worker"),
        pytest.param(STREAM, {"limit_train_batches": 2}, id="limited stream"),
    ],
)
def test_resuming_at_any_step_continues_the_order(fit, tmp_path, data, trainer):
    whole = fit(data, callbacks=[checkpoint(tmp_path, every_n_train_steps=1)], **trainer)
    epochs = {epoch for epoch, *_ in whole}
    orders = [[rows for epoch, _, rows in whole if epoch == each] for each in epochs]
    assert len(orders) >= 2
    assert orders[0] != orders[1]
    files = sorted((tmp_path / "saved").glob("step=*.ckpt"), key=lambda path: int(path.stem[5:]))
    assert len(files) >= 4
    steps = [int(path.stem[5:]) for path in files[:-1]]
    for step, path in zip(steps, files, strict=False):
        rest = fit(data, str(path), **trainer)
        expected = whole[step * trainer.get("accumulate_grad_batches", 1) :]
        if data.get("streaming"):  # Lightning miscounts batches after the last one of a stream
            rest, expected = ([(e, rows) for e, _, rows in each] for each in (rest, expected))
        assert rest == expected


@pytest.mark.parametrize("when", [{"every_n_epochs": 1}, {"every_n_epochs": 1, "last": True}])
def test_resuming_after_an_epoch(fit, tmp_path, when):
    when = {"save_on_train_epoch_end": when.pop("last", False), **when}
    whole = fit(callbacks=[checkpoint(tmp_path, **when)])
    half = len(whole) // 2
    assert fit(ckpt_path=str(tmp_path / "saved" / f"step={half}.ckpt")) == whole[half:]


def test_resuming_after_an_exception(fit, tmp_path):
    class Stop(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 4:
                raise RuntimeError("stop here")

    saver = ModelCheckpoint(tmp_path / "saved", filename="stopped", save_on_exception=True)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(callbacks=[saver, Stop()])
    assert fit(ckpt_path=str(tmp_path / "saved" / "stopped.ckpt")) == fit()[4:]


@pytest.mark.parametrize("data", [{}, STREAM, {"group_by_length": True}])
@pytest.mark.parametrize("stop", [2, 4, 6])  # in mid-epoch, at its end, in the second epoch
def test_resuming_a_run_that_max_steps_stopped(fit, tmp_path, data, stop):
    whole = fit(data, max_epochs=3)
    first = fit(data, callbacks=[checkpoint(tmp_path)], max_epochs=3, max_steps=stop)
    file = tmp_path / "saved" / f"step={stop}.ckpt"
    rest = fit(data, str(file), max_epochs=3)
    rows = [[(epoch, rows) for epoch, _, rows in part] for part in (first + rest, whole)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("data", [{}, STREAM, {"num_workers": 1}])
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (2, 5), (3, 11), (1, 6)])
@pytest.mark.parametrize("how", ["max_steps", "every step"])
def test_resuming_with_another_batch_size_goes_on_with_the_next_row(
    fit, tmp_path, data, before, after, how
):
    options = {**data, "batch_size": before}
    when = {"every_n_train_steps": 1} if how == "every step" else {}
    first = fit(options, callbacks=[checkpoint(tmp_path, **when)], max_steps=2)
    rest = fit({**data, "batch_size": after}, str(tmp_path / "saved" / "step=2.ckpt"))
    flat = [(epoch, row) for epoch, _, rows in first + rest for row in rows]
    assert flat == [(epoch, row) for epoch, _, rows in fit(data) for row in rows]


@pytest.mark.parametrize("changed", [{"seed": 6}, {"max_rows": 10}])
def test_resuming_in_another_order_starts_the_epoch_anew_with_a_word(fit, tmp_path, changed):
    fit(callbacks=[checkpoint(tmp_path)], max_steps=2)
    with pytest.warns(UserWarning, match="row 6 of epoch 0, but the order .* epoch 0 starts anew"):
        rest = fit(changed, str(tmp_path / "saved" / "step=2.ckpt"))
    assert rest == fit(changed)


def test_a_loader_asked_for_after_a_stopped_fit_starts_at_the_beginning(
    write_rows, numbered_rows, tokenizer_folder
):
    data = PreferenceDataModule(write_rows(numbered_rows(11)), tokenizer_folder, batch_size=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "limit_val_batches": 0, "accelerator": "cpu"}
    Trainer(max_steps=2, **quiet).fit(order(), datamodule=data)
    assert sum(len(batch.index) for batch in data.train_dataloader()) == 11


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_a_batch_resumes_in_the_right_epoch(fit, tmp_path):
    """Lightning makes a loader of its own for it, in the order of the rows."""
    options = {"overfit_batches": 2, "max_epochs": 4}
    whole = fit(callbacks=[checkpoint(tmp_path, every_n_epochs=1)], **options)
    assert [rows for _, _, rows in whole] == 4 * [[0, 1, 2], [3, 4, 5]]
    assert fit(ckpt_path=str(tmp_path / "saved" / "step=4.ckpt"), **options) == whole[4:]


def test_fitting_on_continues_with_the_next_epoch(write_rows, numbered_rows, tokenizer_folder):
    data = PreferenceDataModule(
        write_rows(numbered_rows(11)), tokenizer_folder, validation_fraction=0.1, batch_size=3
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    whole, parts = order(), order()
    Trainer(max_epochs=2, **quiet).fit(whole, datamodule=data)
    trainer = Trainer(max_epochs=1, **quiet)
    trainer.fit(parts, datamodule=data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(parts, datamodule=data)
    assert parts.seen == whole.seen
