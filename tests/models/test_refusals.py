"""Models that cannot be trained on are refused in words, and what is left out is told of."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lit_tidpo.errors import InputError
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def llama(tmp_path):
    """Folder of a tiny Llama."""
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def refusal(folder, **options):
    with pytest.raises(InputError) as refused:
        build_policy(PolicyConfig(str(folder), **options))
    message = str(refused.value)
    assert "\n" not in message
    assert str(folder) in message or "policy." in message or "see those after" in message
    return message


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    BertLMHeadModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    assert "lets tokens see those after them" in refusal(tmp_path / "bert")


def test_an_encoder_decoder_is_refused(tmp_path):
    sizes = {"vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, max_position_embeddings=32))
    model.save_pretrained(tmp_path / "bart")
    assert "encoder-decoder" in refusal(tmp_path / "bart")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "missing .* model.norm.weight"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), "cannot be loaded"),
    ],
)
def test_incomplete_weights_are_refused(llama, change, words):
    weights = load_file(llama / "model.safetensors")
    change(weights)
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=words):
        build_policy(PolicyConfig(str(llama)))


def test_surplus_weights_are_told_of(llama):
    weights = load_file(llama / "model.safetensors") | {"value_head": torch.ones(3)}
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="1 tensors .* left out, such as value_head"):
        build_policy(PolicyConfig(str(llama)))


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_broken_weights_are_refused(llama, content):
    (llama / "model.safetensors").write_bytes(content)
    assert "cannot be loaded" in refusal(llama)


def test_a_missing_kernel_and_a_missing_quantiser_are_refused(llama):
    kernel = {"attn_implementation": "flash_attention_2"}
    assert "cannot be loaded" in refusal(llama, **kernel)
    config = json.loads((llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (llama / "config.json").write_text(json.dumps(config))
    assert "cannot be loaded" in refusal(llama)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # by peft
@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_adapters_of_tied_layers_are_refused(tmp_path, layer):
    config = LlamaConfig(**SIZES, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    message = refusal(tmp_path / "tied", lora=LoraOptions(r=2, target_modules=["q_proj", layer]))
    assert "shares their weights" in message


def test_the_routers_loss_is_left_out_with_a_word(tmp_path):
    config = MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=2, output_router_logits=True
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    with pytest.warns(UserWarning, match="router's balancing loss"):
        policy = build_policy(PolicyConfig(str(tmp_path / "moe")))
    ids = torch.arange(4).unsqueeze(0)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    torch.testing.assert_close(policy(input_ids=ids).logits, whole(input_ids=ids).logits)
