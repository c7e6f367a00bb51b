"""A tiny model with its tokenizer, tiny data, and a cache of its own for each session."""

from __future__ import annotations

import pytest
import torch

from .runs import make_data, write_data, write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(source, model_folder):
    return make_data(source, model_folder)


@pytest.fixture(scope="session")
def batch(source, model_folder):
    """The first four validation pairs."""
    data = make_data(source, model_folder)
    data.setup("validate")
    return next(iter(data.val_dataloader()))
