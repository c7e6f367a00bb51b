"""A tiny model with its tokenizer, tiny data, and a cache of its own for each session."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig

from .runs import LORA, make_data, write_data, write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def adapter(model_folder, tmp_path_factory):
    """A folder with an adapter that already does something."""
    policy = build_policy(PolicyConfig(path=model_folder, **LORA))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    folder = tmp_path_factory.mktemp("adapter")
    policy.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    import datasets
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache / "datasets"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache / "modules"))
        yield


@pytest.fixture
def data(source, model_folder):
    return make_data(source, model_folder)


@pytest.fixture(scope="session")
def batch(source, model_folder):
    """The first four validation pairs."""
    data = make_data(source, model_folder)
    data.setup("validate")
    return next(iter(data.val_dataloader()))
