"""Adapters on a base of few bits, on the CPU (QLoRA)."""

from __future__ import annotations

import importlib.util
import sys

import peft
import pytest
import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_tidpo.errors import InputError
from lit_tidpo.models.export import export_checkpoint
from lit_tidpo.models.loading import build_policy, without_weights
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.quantization import quantization_settings
from lit_tidpo.models.quirks.parts import inner_model

from .runs import NO_TRIPLET, QUIET, assert_same, byte_tokenizer, fit, logits, make_module

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:::(bitsandbytes|torchao)")]


def kinds(*names):
    """The kinds whose library is there."""
    package = {"nf4": "bitsandbytes", "int8": "torchao"}
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(package[name]) is None,
                reason=f"{name} needs {package[name]}: pip install 'lit-tidpo[qlora]'",
            ),
        )
        for name in names
    ]


def qlora(kind, **options):
    return {"lora": LoraOptions(r=2), "quantization": kind, "save_frozen": False, **options}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A Llama whose layers have whole blocks."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def dequantized(layer):
    """The dense weight of a layer, by each library's own function."""
    if hasattr(layer.weight, "quant_state"):
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer.weight.dequantize()


@pytest.fixture
def dense_folder(model_folder, tmp_path):
    """Saves the model with its weights dequantised; gives the folder."""

    def save(kind):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        quantized = inner_model(build_policy(PolicyConfig(model_folder, **qlora(kind))))
        changed = 0
        with torch.no_grad():
            for name, layer in quantized.named_modules():
                if name.endswith("_proj.base_layer"):
                    weight = model.get_submodule(name.removesuffix(".base_layer")).weight
                    changed += not torch.equal(weight, value := dequantized(layer))
                    weight.copy_(value)
        assert changed == 14
        folder = tmp_path / "dense"
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return str(folder)

    return save


@pytest.mark.parametrize("kind", kinds("nf4", "int8"))
def test_training_is_that_of_the_dequantised_weights(kind, model_folder, dense_folder, data):
    """Log-probs, importance through the base, the reference (adapters off), and gradients."""
    runs = [
        fit(make_module(path, policy=policy, **NO_TRIPLET), data)
        for path, policy in (
            (model_folder, qlora(kind)),
            (dense_folder(kind), {"lora": LoraOptions(r=2)}),
        )
    ]
    assert all("lora_" in name for name in runs[0].gradients[-1])
    assert max(value.abs().max() for value in runs[0].gradients[-1].values()) > 1e-3
    assert runs[0].metrics[0]["train/rewards/chosen"] == 0.0
    for one, other in zip(runs[0].gradients, runs[1].gradients, strict=True):
        names = {name.replace("base_layer.", ""): name for name in one}
        assert_same({new: one[old] for new, old in names.items()}, other, atol=1e-4)
    for one, other in zip(runs[0].metrics, runs[1].metrics, strict=True):
        assert_same(one, other, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
@pytest.mark.parametrize("kind", kinds("nf4", "int8"))
def test_adapters_resume_and_are_exported_alone(kind, model_folder, data, batch, tmp_path):
    whole = make_module(model_folder, policy=qlora(kind), **NO_TRIPLET)
    recorder = fit(whole, data, tmp_path / "saved")
    checkpoint = tmp_path / "saved" / "step=2.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all("lora_" in name for name in saved)
    resumed = make_module(model_folder, policy=qlora(kind), **NO_TRIPLET)
    again = fit(resumed, data, ckpt_path=str(checkpoint))
    trained = set(recorder.gradients[-1])
    ends = [{n: run.parameters[-1][n] for n in trained} for run in (recorder, again)]
    assert_same(*ends)
    with pytest.raises(InputError, match=r"cannot be merged into a quantised base.*--adapter"):
        export_checkpoint(checkpoint, tmp_path / "merged")
    last = tmp_path / "saved" / "step=3.ckpt"
    export_checkpoint(last, tmp_path / "adapter", adapter=True)
    config = quantization_settings(kind, torch.float32)
    base = AutoModelForCausalLM.from_pretrained(
        model_folder, quantization_config=config, dtype=torch.float32
    )
    # in train mode, as bitsandbytes would compute in bfloat16 in eval mode; nothing is dropped
    reloaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").train()
    expected = logits(whole.policy.eval(), batch)
    torch.testing.assert_close(logits(reloaded, batch), expected, atol=1e-4, rtol=0)
    more = {"adapter": str(tmp_path / "adapter"), "quantization": kind, "save_frozen": False}
    gone_on = fit(make_module(model_folder, policy=more, **NO_TRIPLET), data, max_steps=1)
    assert gone_on.metrics[0]["train/rewards/chosen"] == 0.0


@pytest.mark.parametrize("kind", kinds("nf4"))
def test_gradients_outlive_a_pass_in_eval_mode(kind, model_folder, batch):
    """There, bitsandbytes packs weights anew for a kernel without a backward pass on some CPUs."""
    policy = build_policy(PolicyConfig(model_folder, **qlora(kind)))
    layer = inner_model(policy).model.layers[0].mlp.up_proj.base_layer
    expected = dequantized(layer)
    logits(policy.eval(), batch)
    given = torch.randn(3, 64, requires_grad=True)
    for mode in (policy.eval, policy.train):
        mode()
        (gradient,) = torch.autograd.grad(layer(given).sum(), given)
        (dense,) = torch.autograd.grad(linear(given, expected).sum(), given)
        torch.testing.assert_close(gradient, dense)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora": None, "save_frozen": True}, r"cannot be trained: set policy\.lora"),
        ({"save_frozen": True}, r"set policy\.save_frozen=false"),
        ({"init": "random"}, r"leave policy\.init and"),
        ({"gguf_file": "a.gguf"}, r"policy\.gguf_file out"),
        ({"quantization": "nf5"}, r"policy\.quantization='nf5'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        PolicyConfig("any", **qlora("nf4", **options))


@pytest.mark.parametrize(("kind", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_missing_library_is_named(kind, package, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.quantization", None)
    with pytest.raises(InputError, match=rf"{package}.*pip install 'lit-tidpo\[qlora\]'"):
        build_policy(PolicyConfig(model_folder, **qlora(kind)))


def test_an_estimate_is_refused(model_folder):
    with without_weights(), pytest.raises(InputError, match="made while weights are read"):
        build_policy(PolicyConfig(model_folder, **qlora("nf4")))
