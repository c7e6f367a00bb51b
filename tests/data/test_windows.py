"""Batches of a window: the first announces the others, window by window of an epoch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import move_data_to_device

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.errors import InputError

from .order import Order

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning's
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]


@pytest.fixture
def make(tmp_path, write_rows, numbered_rows, tokenizer_folder):
    """A data module of 13 training rows in batches of 2: 7 batches, the last of one pair."""
    write_rows(numbered_rows(13), "train.jsonl")
    write_rows(numbered_rows(4), "validation.jsonl")

    def made(**options):
        return PreferenceDataModule(
            str(tmp_path), tokenizer_folder, **{"batch_size": 2, "seed": 5, **options}
        )

    return made


def loader(data):
    data.setup("fit")
    return data.train_dataloader()


def announced(batch):
    return [rows.index.tolist() for rows in batch.upcoming]


@pytest.mark.parametrize("more", [{}, {"num_workers": 2}, {"streaming": True}])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_each_window_begins_with_what_it_holds(make, size, more):
    """Windows are 0 to 2, 3 to 5 and 6 with size 3: none goes beyond the end of the epoch."""
    order = [batch.index.tolist() for batch in loader(make(**more))]
    assert [len(rows) for rows in order] == [2] * 6 + [1]
    batches = list(loader(make(lookahead=size, **more)))
    assert [batch.index.tolist() for batch in batches] == order
    for number, batch in enumerate(batches):
        following = order[number + 1 : number + size] if number % size == 0 else []
        assert announced(batch) == following


def test_what_is_announced_are_the_chosen_rows_alone(make):
    first, second, *_ = loader(make(lookahead=2))
    (rows,) = first.upcoming
    chosen = second.role("chosen")
    assert rows.roles == ("chosen",)
    for name in ("input_ids", "lengths", "prompt_lengths", "index", "counted"):
        assert torch.equal(getattr(rows, name), getattr(chosen, name))
    assert rows.supplied_weights is None
    assert first.role("rejected").upcoming == ()


def test_supplied_weights_are_not_announced(write_rows, tokenizer_folder):
    rows = [
        {"prompt": f"{n}:", "chosen": "y", "rejected": "n"}
        | {f"{role}_weights": [1.0, 2.0] for role in ("chosen", "rejected")}
        for n in range(4)
    ]
    data = PreferenceDataModule(write_rows(rows), tokenizer_folder, batch_size=2, lookahead=2)
    first, second = loader(data)
    assert second.supplied_weights is not None
    assert first.upcoming[0].supplied_weights is None


def test_announced_rows_move_to_the_device_and_to_pinned_memory(make, monkeypatch):
    first = next(iter(loader(make(lookahead=3))))
    moved = move_data_to_device(first, torch.device("meta"))
    assert [rows.input_ids.device.type for rows in moved.upcoming] == ["meta", "meta"]
    assert [rows.input_ids.device.type for rows in first.upcoming] == ["cpu", "cpu"]
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    assert announced(first.pin_memory()) == announced(first)
    for rows in first.upcoming:
        assert any(tensor is rows.input_ids for tensor in pinned)


def test_evaluation_announces_nothing(make):
    data = make(lookahead=3)
    data.setup("fit")
    assert [announced(batch) for batch in data.val_dataloader()] == [[], []]


def fit(data, ckpt_path=None, callbacks=None):
    model = Order(lambda batch, batch_idx: (batch.index.tolist(), announced(batch)))
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
        limit_val_batches=0,
    ).fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.parametrize("more", [{}, {"num_workers": 1}, {"streaming": True}])
def test_a_window_begun_before_a_restart_announces_nothing_again(make, tmp_path, more):
    data = {"lookahead": 3, **more}
    saver = ModelCheckpoint(
        tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_train_steps=1
    )
    whole = fit(make(**data), callbacks=[saver])
    assert [len(following) for *_, following in whole] == [2, 0, 0, 2, 0, 0, 0] * 2
    for step in (1, 2, 3, 4, 6, 7, 8, 10):
        rest = fit(make(**data), str(tmp_path / "saved" / f"step={step}.ckpt"))
        assert rest == whole[step:]


def test_a_window_holds_at_least_one_batch(make):
    with pytest.raises(InputError, match="lookahead must be at least 1; got 0"):
        make(lookahead=0)
