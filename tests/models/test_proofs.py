"""What is proven of a model before it is used, by values and by gradients that are exactly zero."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import transformers
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.models.layout import choose_layout
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.proofs import check_causal, takes_left_padding
from lit_tidpo.models.quirks.adapted_layers import not_to_adapt
from lit_tidpo.models.quirks.modes import disable_dropout, keep_weights
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.testing import tiny_batch, tiny_policy

from .families import Family

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # by peft
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # the same, of GPT-2
]


def fresh(name, **settings):
    """A model with its usual initial weights, in which nothing is large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Family(name, settings).config()
        return transformers.AutoModelForCausalLM.from_config(config).train()


LFM2 = {"layer_types": ["conv", "full_attention"]}


@pytest.mark.parametrize("zero", [False, True], ids=["small", "zero"])
def test_a_convolution_that_is_small_at_first_is_noticed(zero):
    """Its values differ by 1e-5 nats at the start, and by nats after some training."""
    model = fresh("lfm2", **LFM2)
    kernel = model.model.layers[0].conv.conv.weight
    if zero:
        nn.init.zeros_(kernel)
    before = kernel.detach().clone()
    with pytest.raises(InputError, match="lets a row see those beside it"):
        choose_layout("packed", [model], frozenset())
    assert choose_layout("auto", [model], frozenset()) == "padded"
    assert torch.equal(kernel, before)
    assert all(parameter.grad is None for parameter in model.parameters())


class Glance(nn.Module):
    """Lets each token see the next one, as much as a factor says."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, hidden):
        return hidden + self.factor * hidden.roll(-1, 1)


@pytest.mark.parametrize("factor", [1e-9, 0.0])
def test_a_glance_ahead_is_noticed_however_small(factor):
    policy = tiny_policy()
    check_causal(policy)
    policy.model.norm = nn.Sequential(policy.model.norm, Glance(factor))
    with pytest.raises(InputError, match="lets tokens see those after them"):
        check_causal(policy)
    assert policy.model.norm[1].factor.item() == pytest.approx(factor)


class Crowd(nn.Module):
    """Lets each token see the longest row of the batch."""

    def forward(self, hidden):
        return hidden * hidden.shape[1]


def test_rows_that_padding_changes_are_refused():
    policy = tiny_policy()
    policy.model.norm = nn.Sequential(policy.model.norm, Crowd())
    with pytest.raises(InputError, match="other log-probs to rows that are padded than"):
        choose_layout("padded", [policy], frozenset())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "takes"), [("llama", True), ("gpt2", True), ("rwkv", False)])
def test_padding_that_enters_the_state_is_noticed(name, takes, dtype):
    assert takes_left_padding(fresh(name).to(dtype)) == takes


def test_contexts_are_generated_from_length_by_length_where_padding_counts():
    """Against single rows, several responses for each prompt and their order included."""
    policy, batch = Family("rwkv").model(), tiny_batch(pairs=5)
    sampler = Generation(AnchorOptions(max_new_tokens=5, top_k=1))
    sampler.prepare(policy)
    found = sampler.sample(policy, batch, count=2)
    assert found.roles == ("anchor_1", "anchor_2")
    assert torch.equal(found.index, batch.index)
    assert len(set(batch.prompt_lengths.tolist())) > 1
    for row in range(10):
        length = int(batch.prompt_lengths[row % 5])
        ids = batch.input_ids[row % 5, :length].tolist()
        assert int(found.prompt_lengths[row]) == length
        for _ in range(5):
            logits = policy.eval()(torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        assert found.input_ids[row, : int(found.lengths[row])].tolist() == ids


def test_ranks_of_a_sharded_model_do_not_generate_length_by_length():
    policy = fresh("rwkv")
    sampler = Generation(AnchorOptions(max_new_tokens=2))
    sampler.prepare(policy)
    with pytest.raises(InputError, match="length by length, which ranks"):
        sampler.sample(policy, tiny_batch(pairs=5), on_any_rank=bool)


def test_generation_that_is_not_the_models_own_is_refused(monkeypatch):
    policy = tiny_policy()
    prepare = policy.prepare_inputs_for_generation

    def other(input_ids, **options):
        return prepare(input_ids.flip(-1), **options)

    monkeypatch.setattr(policy, "prepare_inputs_for_generation", other)
    with pytest.raises(InputError, match="LlamaForCausalLM cannot sample anchors of its own"):
        Generation(AnchorOptions()).prepare(policy)


@pytest.mark.parametrize(
    ("name", "settings", "left_out"),
    [
        ("mamba", {}, {"dt_proj", "out_proj"}),
        ("falcon_h1", {"mamba_d_ssm": 64}, {"out_proj"}),
        ("llama4_text", {}, {"router"}),
        ("phimoe", {}, {"router"}),
        ("falcon", {"head_dim": None}, set()),  # its linear layers have a forward of their own
        ("llama", {}, set()),
        ("gpt2", {}, set()),
    ],
)
def test_adapters_leave_out_what_they_cannot_wrap(tmp_path, name, settings, left_out):
    model = fresh(name, **settings)
    assert {each.rpartition(".")[2] for each in not_to_adapt(model)} == left_out
    model.save_pretrained(tmp_path)
    policy = build_policy(PolicyConfig(str(tmp_path), lora=LoraOptions(r=2)))
    policy(torch.arange(4).unsqueeze(0), use_cache=False).logits.sum().backward()
    adapted = {each for each, _ in policy.named_parameters() if "lora_B" in each}
    assert adapted
    assert not any(f".{part}." in each for part in left_out for each in adapted)


def test_the_kernel_is_chosen_with_a_word(tmp_path, caplog):
    fresh("bloom").save_pretrained(tmp_path / "bloom")
    tiny_policy().save_pretrained(tmp_path / "llama")
    with caplog.at_level(logging.INFO):
        bloom = build_policy(PolicyConfig(str(tmp_path / "bloom")))
        assert "BloomForCausalLM runs eager attention: it has no other" in caplog.text
    assert bloom.config._attn_implementation == "eager"
    assert build_policy(PolicyConfig(str(tmp_path / "llama"))).config._attn_implementation == "sdpa"
    with pytest.raises(InputError, match=r"cannot be loaded with policy\.attn_implementation=sdpa"):
        build_policy(PolicyConfig(str(tmp_path / "bloom"), attn_implementation="sdpa"))


def test_experts_are_not_drawn_at_random_while_dropout_is_off():
    model, ids = fresh("phimoe"), torch.arange(1, 60).unsqueeze(0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.weight.mul_(1e-3)  # no expert is far ahead
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    first = model(ids).logits
    assert torch.equal(model(ids).logits, first)
    torch.testing.assert_close(first, model.eval()(ids).logits)


def test_rwkv_keeps_its_weights_in_eval_mode():
    model, ids = fresh("rwkv", num_hidden_layers=7), torch.arange(1, 6).unsqueeze(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(ids).logits
    keep_weights(model)
    torch.testing.assert_close(model.eval()(ids).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_models_of_images_are_refused(tmp_path):
    transformers.LlavaConfig().save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"is a llava, of which there is no causal .* name a folder"
    ):
        build_policy(PolicyConfig(str(tmp_path)))


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path):
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=re.escape("is an encoder-decoder (t5)")):
        build_policy(PolicyConfig(str(tmp_path)))
