"""Models and tokenizers from GGUF files: the same as those that the files were written from."""

import sys

import pytest
import torch
from gguf_files import write_gguf
from modules.runs import QUIET, write_model

from lit_tidpo.errors import InputError
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.tokenizer import load_tokenizer

pytestmark = QUIET


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of a model, and one of a GGUF file that was written from it."""
    folder = tmp_path_factory.mktemp("models")
    original = write_model(folder / "model", vocabulary=260, num_key_value_heads=1)
    return original, write_gguf(original, folder / "gguf")


def config(folders, **options):
    return PolicyConfig(folders[1], gguf_file="!.gguf", **options)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 30).unsqueeze(0)).logits


def test_the_model_is_the_one_that_was_written(folders):
    expected = logits(build_policy(PolicyConfig(folders[0])))
    torch.testing.assert_close(logits(build_policy(config(folders))), expected)


def test_what_is_saved_is_a_model_like_any_other(folders, tmp_path):
    policy = build_policy(config(folders))
    policy.save_pretrained(tmp_path / "saved")
    again = build_policy(PolicyConfig(str(tmp_path / "saved")))
    torch.testing.assert_close(logits(again), logits(policy))


def test_adapters_are_trained_on_it(folders):
    policy = build_policy(config(folders, lora=LoraOptions(r=2)))
    policy(input_ids=torch.arange(3, 30).unsqueeze(0)).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in policy.parameters())


def test_the_tokenizer_is_the_one_that_was_written(folders):
    expected, found = load_tokenizer(folders[0]), load_tokenizer(folders[1], gguf_file="!.gguf")
    text = "Is it 3.5 metres, or 4?\n"
    assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert found.chat_template == expected.chat_template
    assert found.eos_token_id == expected.eos_token_id


def test_a_file_that_is_not_there_is_told(folders):
    with pytest.raises(InputError, match="other"):
        build_policy(PolicyConfig(folders[1], gguf_file="other.gguf"))


def test_the_missing_package_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install 'lit-tidpo\\[gguf\\]'"):
        build_policy(config(folders))
