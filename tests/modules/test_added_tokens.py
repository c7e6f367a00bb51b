"""Tokens that are added to a model: their rows are trained, resumed, exported and kept apart."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tidpo.errors import InputError
from lit_tidpo.models.export import export_checkpoint
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.quirks.parts import input_layer

from .runs import (
    LORA,
    NO_TRIPLET,
    QUIET,
    assert_same,
    fit,
    logits,
    make_data,
    make_module,
    reference_of,
    write_model,
)

TOKENS = ["yes", "no"]
pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # saved nothing on
]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder, tie_word_embeddings=request.param, attention_dropout=0.0)


@pytest.fixture
def tokens_data(source, folder):
    return make_data(source, folder, added_tokens=TOKENS)


def test_new_rows_are_the_mean_of_the_others(folder):
    old = input_layer(build_policy(PolicyConfig(folder))).weight
    policy = build_policy(PolicyConfig(folder, added_tokens=TOKENS))
    for layer in (input_layer(policy), policy.lm_head):
        assert len(layer.weight) == len(old) + 2
        before = old if layer is input_layer(policy) else layer.weight[:-2]
        mean = before.mean(0).expand(2, -1)
        torch.testing.assert_close(layer.weight[-2:], mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(input_layer(policy).weight[:-2], old, atol=0, rtol=0)


@pytest.mark.parametrize("policy", [{}, LORA], ids=["all", "LoRA"])
def test_new_rows_are_trained_resumed_and_exported(policy, folder, tokens_data, tmp_path):
    options = {"policy": {**policy, "added_tokens": TOKENS}, **NO_TRIPLET}
    module = make_module(folder, **options)
    start = build_policy(PolicyConfig(folder, added_tokens=TOKENS)).eval()
    recorder = fit(module, tokens_data, tmp_path / "saved")
    ids = AutoTokenizer.from_pretrained(folder).vocab_size + torch.arange(2)
    window = recorder.windows[-1][0]
    assert bool(torch.isin(window.input_ids, ids).any())
    # The reference has the rows as they started, whatever was trained since.
    assert recorder.metrics[0]["train/rewards/chosen"] == 0.0
    with reference_of(module).active(module.policy, torch.device("cpu")) as reference:
        torch.testing.assert_close(logits(reference, window), logits(start, window))
    resumed = make_module(folder, **options)
    again = fit(resumed, tokens_data, ckpt_path=str(tmp_path / "saved" / "step=2.ckpt"))
    assert_same(again.parameters[-1], recorder.parameters[-1])
    exported = export_checkpoint(tmp_path / "saved" / "step=3.ckpt", tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    expected = logits(module.policy.eval(), window)
    torch.testing.assert_close(logits(model, window), expected, atol=1e-4, rtol=0)
    moved = (input_layer(model).weight - input_layer(start).weight)[ids].abs().amax(-1)
    assert bool((moved > 1e-5).all())
    assert AutoTokenizer.from_pretrained(exported).convert_tokens_to_ids(TOKENS) == ids.tolist()


def test_gradients_of_new_rows_are_those_of_the_whole_embeddings(folder, tokens_data):
    """With LoRA they alone are trained: peft's rows have the gradients of the embeddings' own."""
    found = []
    for policy in ({}, LORA):
        options = {"policy": {**policy, "added_tokens": TOKENS}, **NO_TRIPLET}
        found.append(fit(make_module(folder, **options), tokens_data, max_steps=1).gradients[0])
    whole = found[0]["policy.model.embed_tokens.weight"][-2:]
    (rows,) = (v for n, v in found[1].items() if "embed_tokens" in n and "trainable_tokens" in n)
    torch.testing.assert_close(rows, whole, atol=1e-6, rtol=1e-4)


def test_an_adapter_alone_brings_the_new_rows(folder, tokens_data, tmp_path):
    policy = {**LORA, "added_tokens": TOKENS}
    module = make_module(folder, policy=policy, **NO_TRIPLET)
    window = fit(module, tokens_data, tmp_path / "saved").windows[-1][0]
    checkpoint = tmp_path / "saved" / "step=3.ckpt"
    adapter = export_checkpoint(checkpoint, tmp_path / "adapter", adapter=True)
    base = AutoModelForCausalLM.from_pretrained(folder)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(adapter)))
    loaded = peft.PeftModel.from_pretrained(base, adapter).eval()
    expected = logits(module.policy.eval(), window)
    torch.testing.assert_close(logits(loaded, window), expected, atol=1e-4, rtol=0)


def test_a_token_that_is_there_is_refused(folder):
    with pytest.raises(InputError, match=r"the tokenizer has \['<s>'\] already"):
        build_policy(PolicyConfig(folder, added_tokens=["<s>", "new"]))
