"""The data module, alone and in a Trainer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning's
]


class Recorder(LightningModule):
    """Keeps the rows that each stage saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {"fit": [], "validate": [], "test": []}

    def step(self, batch, stage):
        self.seen[stage].extend(batch.index[batch.counted].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def training_step(self, batch, batch_idx):
        return self.step(batch, "fit")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "validate")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def predict_step(self, batch, batch_idx):
        return batch.index.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    return Trainer(accelerator="cpu", **{**quiet, **options})


@pytest.fixture
def folder(tmp_path, write_rows, numbered_rows):
    for split, count in (("train", 7), ("validation", 5), ("test", 3)):
        write_rows(numbered_rows(count), f"{split}.jsonl")
    return str(tmp_path)


@pytest.fixture
def one_file(write_rows, numbered_rows):
    return write_rows(numbered_rows(10))


@pytest.mark.parametrize("streaming", [False, True])
def test_every_stage_sees_every_row_of_its_split(folder, tokenizer_folder, streaming):
    data = PreferenceDataModule(folder, tokenizer_folder, batch_size=2, streaming=streaming)
    model, trainer = Recorder(), quiet_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert sorted(model.seen["fit"]) == list(range(7))
    assert model.seen["validate"] == list(range(5))
    trainer.test(model, datamodule=data, verbose=False)
    assert model.seen["test"] == list(range(3))
    assert trainer.predict(model, datamodule=data) == [[0, 1], [2, 3], [4]]
    assert {split: report.usable for split, report in data.reports.items()} == {
        "train": 7,
        "validation": 5,
        "test": 3,
    }


def test_batches_without_a_trainer(folder, tokenizer_folder):
    data = PreferenceDataModule(
        folder, tokenizer_folder, batch_size=4, eval_batch_size=5, pad_to_multiple=16
    )
    data.prepare_data()
    data.setup("fit")
    assert [batch.size for batch in data.train_dataloader()] == [4, 3]
    (batch,) = data.val_dataloader()
    assert batch.size == 5
    assert batch.input_ids.shape[1] % 16 == 0
    text = data.tokenizer.decode(batch.input_ids[0, : batch.lengths[0]])
    assert text == "<s>Question 0: yes</s>"


def test_fewer_rows_than_a_batch(folder, tokenizer_folder):
    data = PreferenceDataModule(folder, tokenizer_folder, batch_size=100)
    data.setup("fit")
    assert [batch.size for batch in data.train_dataloader()] == [7]
    data = PreferenceDataModule(folder, tokenizer_folder, batch_size=100, drop_last=True)
    data.setup("fit")
    with pytest.raises(InputError, match="fewer pairs than a batch of all devices"):
        data.train_dataloader()
    assert len(data.val_dataloader()) == 1


def test_drop_last_and_max_rows(folder, tokenizer_folder):
    data = PreferenceDataModule(folder, tokenizer_folder, batch_size=2, drop_last=True, max_rows=5)
    data.setup("fit")
    assert [batch.size for batch in data.train_dataloader()] == [2, 2]
    assert data.reports["train"].rows == 5


def test_group_by_length_reaches_the_sampler(folder, tokenizer_folder):
    data = PreferenceDataModule(folder, tokenizer_folder, batch_size=3, group_by_length=True)
    data.setup("fit")
    loader = data.train_dataloader()
    rows = [loader.dataset[place] for place in range(7)]
    assert loader.sampler.lengths == [row["length"] for row in rows]
    evaluation = data.val_dataloader().sampler
    assert evaluation.lengths is not None
    order = list(evaluation)
    evaluation.set_epoch(3)
    assert list(evaluation) == order  # a limited number of batches holds the same rows each time
    assert sorted(order) == list(range(5))


@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_validation_rows_are_held_out_the_same_way_each_time(one_file, tokenizer_folder, fraction):
    def cut(**options):
        data = PreferenceDataModule(
            one_file, tokenizer_folder, validation_fraction=fraction, batch_size=20, **options
        )
        data.prepare_data()
        data.setup("fit")
        data.setup("predict")
        (train,), (validation,) = data.train_dataloader(), data.val_dataloader()
        (predict,) = data.predict_dataloader()
        assert predict.index.tolist() == validation.index.tolist()
        return sorted(train.index.tolist()), sorted(validation.index.tolist())

    train, validation = cut()
    assert sorted(train + validation) == list(range(10))
    assert len(validation) == round(10 * fraction)
    assert cut() == (train, validation)
    assert cut(seed=1) != (train, validation)


def test_validation_fraction_leaves_an_existing_split_alone(folder, tokenizer_folder):
    data = PreferenceDataModule(folder, tokenizer_folder, validation_fraction=0.5)
    with pytest.warns(UserWarning, match=r"validation_fraction=0\.5 has no effect"):
        data.setup("fit")
    assert (data.reports["train"].rows, data.reports["validation"].rows) == (7, 5)


def test_validation_fraction_of_one_row(write_rows, numbered_rows, tokenizer_folder):
    data = PreferenceDataModule(
        write_rows(numbered_rows(1)), tokenizer_folder, validation_fraction=0.5
    )
    with pytest.raises(InputError, match=r"validation_fraction=0.5 leaves no training pair of 1"):
        data.setup("fit")


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # Lightning's
def test_fitting_goes_without_a_validation_split(one_file, tokenizer_folder):
    model = Recorder()
    with pytest.warns(UserWarning, match="fitting goes without validation"):
        quiet_trainer(max_epochs=1).fit(
            model, datamodule=PreferenceDataModule(one_file, tokenizer_folder)
        )
    assert len(model.seen["fit"]) == 10
    assert model.seen["validate"] == []


@pytest.mark.parametrize(("stage", "split"), [("validate", "validation"), ("test", "test")])
def test_other_stages_need_their_split(one_file, tokenizer_folder, stage, split):
    data = PreferenceDataModule(one_file, tokenizer_folder)
    with pytest.raises(InputError, match=rf"no split '{split}'; they have \['train'\]"):
        data.setup(stage)


def test_split_names(folder, tokenizer_folder):
    data = PreferenceDataModule(
        folder,
        tokenizer_folder,
        train_split="test",
        validation_split="train",
        test_split="validation",
        predict_split="train",
    )
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    loaders = (
        data.train_dataloader(),
        data.val_dataloader(),
        data.test_dataloader(),
        data.predict_dataloader(),
    )
    assert [len(loader.dataset) for loader in loaders] == [3, 7, 5, 7]


@pytest.mark.parametrize("streaming", [False, True])
def test_ranks_share_the_global_batches(folder, tokenizer_folder, streaming):
    def batches(size, ranks, rank):
        data = PreferenceDataModule(
            folder, tokenizer_folder, batch_size=size, streaming=streaming, seed=2
        )
        data.setup("fit")
        share = {"num_replicas": ranks, "rank": rank}
        data.trainer = SimpleNamespace(distributed_sampler_kwargs=share, current_epoch=0)
        return [(batch.index.tolist(), batch.counted.tolist()) for batch in data.train_dataloader()]

    whole = batches(4, 1, 0)
    first, second = batches(2, 2, 0), batches(2, 2, 1)
    assert len(first) == len(second) == len(whole) == 2
    for one, other, both in zip(first, second, whole, strict=True):
        counted = [n for side in (one, other) for n, real in zip(*side, strict=True) if real]
        assert sorted(counted) == sorted(both[0])
    assert second[-1][1] == [True, False]  # 7 rows: the last only fills up


def test_weights_reach_the_batch(write_rows, tokenizer_folder, llama_like):
    tokens = len(llama_like(" no", add_special_tokens=False).input_ids) + 1
    row = {"prompt": "Q:", "chosen": " no no", "rejected": " no"}
    row |= {"chosen_weights": [0.5] * (2 * tokens - 1), "rejected_weights": [2.0] * (tokens + 1)}
    with pytest.raises(InputError, match="row 0: field 'rejected_weights' has"):
        PreferenceDataModule(write_rows([row]), tokenizer_folder).setup("fit")
    row["rejected_weights"].pop()
    data = PreferenceDataModule(write_rows([row]), tokenizer_folder)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert torch.equal(batch.supplied_weights > 0, batch.response_mask)


def test_invalid_rows(write_rows, numbered_rows, tokenizer_folder):
    rows = [*numbered_rows(3), {"prompt": "Q", "chosen": "", "rejected": "b"}]
    path = write_rows(rows)
    with pytest.raises(InputError, match="1 of 4 rows of split 'train' cannot be used"):
        PreferenceDataModule(path, tokenizer_folder).setup("fit")
    data = PreferenceDataModule(path, tokenizer_folder, invalid_rows="drop")
    with pytest.warns(UserWarning, match="dropped: 1 empty response"):
        data.setup("fit")
    assert data.reports["train"].problems == {"empty response": 1}


def test_setup_twice_prepares_once(folder, tokenizer_folder):
    data = PreferenceDataModule(folder, tokenizer_folder)
    data.setup("fit")
    report = data.reports["train"]
    data.setup("fit")
    assert data.reports["train"] is report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"pad_to_multiple": 0}, "pad_to_multiple must be"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_length": 9, "max_prompt_length": 9}, "less than max_length=9"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\)"),
        ({"invalid_rows": "ignore"}, "invalid_rows must be one of"),
        ({"streaming": True, "group_by_length": True}, "group_by_length=True does not go with"),
        ({"streaming": True, "validation_fraction": 0.1}, "name a validation_split"),
        ({"streaming": True, "num_workers": 2}, "num_workers=2 does not go with streaming"),
    ],
)
def test_arguments_are_checked_at_construction(options, message):
    with pytest.raises(InputError, match=message):
        PreferenceDataModule("owner/data", "owner/model", **options)


def test_hyperparameters_are_plain_data():
    data = PreferenceDataModule("owner/data", "owner/model", batch_size=3)
    assert json.loads(json.dumps(dict(data.hparams)))["batch_size"] == 3


def test_a_module_may_log_an_argument_of_the_same_name(folder, tokenizer_folder, tmp_path):
    class Seeded(Recorder):
        def __init__(self, seed):
            super().__init__()
            self.save_hyperparameters()

    trainer = quiet_trainer(max_epochs=1, logger=CSVLogger(tmp_path / "logs"), log_every_n_steps=1)
    trainer.fit(Seeded(1), datamodule=PreferenceDataModule(folder, tokenizer_folder, seed=2))
    assert trainer.state.finished


def test_every_argument_has_help():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(PreferenceDataModule, "data")
    actions = [action for action in parser._actions if action.dest.startswith("data.")]
    assert len(actions) >= 24
    assert all(action.help and len(action.help) > 15 for action in actions)


def test_a_shuffle_buffer_without_streaming_is_refused(folder, tokenizer_folder):
    with pytest.raises(InputError, match="shuffle_buffer=5 has no effect"):
        PreferenceDataModule(folder, tokenizer_folder, shuffle_buffer=5)
