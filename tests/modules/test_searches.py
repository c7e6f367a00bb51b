"""Lightning's searches for a learning rate and a batch size leave a run as it would be without."""

import functools

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lit_tidpo.errors import InputError

from .runs import (
    QUIET,
    SHORT,
    assert_same,
    fit,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
)

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*Failed to compute suggestion"),
]
# Kept weights and anchors, dropout, a warm-up and a schedule: all that a search could disturb.
OPTIONS = {
    "importance_every": 3,
    "anchor": SHORT,
    "warmup_steps": 2,
    "lr_schedule": "cosine",
}


def sgd(rate):
    return {"optimizer": functools.partial(torch.optim.SGD, lr=rate, momentum=0.9)}


def train(source, model_folder, *callbacks, rate=0.05, **data):
    module = make_module(model_folder, **OPTIONS, **sgd(rate))
    loaders = make_data(source, model_folder, batch_size=2, **data)
    trainer = quiet_trainer(max_steps=5, limit_val_batches=0, callbacks=list(callbacks))
    trainer.fit(module, loaders)
    assert trainer.global_step == 5
    return parameters(module), module, loaders


@pytest.fixture(scope="module")
def plain(source, model_folder):
    return train(source, model_folder)[0]


def search(**options):
    return LearningRateFinder(min_lr=1e-3, max_lr=0.3, num_training_steps=6, **options)


def test_a_search_for_a_rate_moves_nothing(source, model_folder, plain):
    finder = search(update_attr=False)
    assert_same(train(source, model_folder, finder)[0], plain)
    assert len(finder.optimal_lr.results["loss"]) == 6


def test_the_rate_that_was_found_is_that_of_the_run(source, model_folder, plain, monkeypatch):
    """As if it had been typed, with warm-up and schedule."""
    finder = search()
    monkeypatch.setattr(
        "lightning.pytorch.tuner.lr_finder._LRFinder.suggestion", lambda self, *rest: 0.125
    )
    found, module, _ = train(source, model_folder, finder)
    assert module.lr == 0.125
    assert_same(found, train(source, model_folder, rate=0.125)[0])
    assert any(not torch.equal(found[key], plain[key]) for key in plain)


def test_a_tuner_sets_the_rate_of_the_next_fit(source, model_folder):
    module = make_module(model_folder, **OPTIONS, **sgd(0.05))
    loaders = make_data(source, model_folder, batch_size=2)
    finder = Tuner(quiet_trainer(max_steps=5, limit_val_batches=0)).lr_find(
        module, datamodule=loaders, min_lr=1e-3, max_lr=0.3, num_training=6
    )
    assert module.lr == (finder.suggestion() or 0.05)
    module.lr = 0.125
    quiet_trainer(max_steps=5, limit_val_batches=0).fit(module, loaders)
    assert_same(parameters(module), train(source, model_folder, rate=0.125)[0])


def test_the_batch_size_that_was_found_is_that_of_the_run(source, model_folder):
    """The search ends at the 12 pairs of the data, without an error of memory."""
    finder = BatchSizeFinder(init_val=1, steps_per_trial=1, max_trials=3)
    found, _, loaders = train(source, model_folder, finder)
    assert finder.optimal_batch_size == loaders.batch_size == 4
    module = make_module(model_folder, **OPTIONS, **sgd(0.05))
    quiet_trainer(max_steps=5, limit_val_batches=0).fit(module, make_data(source, model_folder))
    assert_same(found, parameters(module))


@pytest.mark.parametrize("finder", [search, BatchSizeFinder])
def test_a_run_that_goes_on_refuses_to_search(source, model_folder, tmp_path, finder):
    fit(make_module(model_folder, **OPTIONS), make_data(source, model_folder), tmp_path)
    file = str(tmp_path / "step=1.ckpt")
    with pytest.raises(InputError, match="this one goes on from a checkpoint"):
        fit(
            make_module(model_folder, **OPTIONS),
            make_data(source, model_folder),
            ckpt_path=file,
            max_steps=2,
            callbacks=[finder()],
        )
