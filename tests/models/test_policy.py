"""How the policy is built, and what it does without dropout."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers

from lit_tidpo.errors import InputError
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.quirks.backward import compile_layers
from lit_tidpo.models.quirks.modes import disable_dropout, evaluating
from lit_tidpo.models.quirks.parts import inner_model
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.strategies.family import Run
from lit_tidpo.strategies.model_parallel import ModelParallel
from lit_tidpo.testing import tiny_batch, tiny_policy

PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SMALL = {"vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# Three kinds of dropout: modules (GPT-2), numbers (Llama), whole layers (OPT).
WITH_DROPOUT = {
    "gpt2": transformers.GPT2Config(
        **SMALL, **GPT2, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1
    ),
    "llama": transformers.LlamaConfig(**SMALL, **LLAMA, attention_dropout=0.1),
    "opt": transformers.OPTConfig(
        **SMALL,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        dropout=0.1,
        attention_dropout=0.1,
        layerdrop=0.5,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a random model of a family; give its folder."""
    folders = {}

    def save(family):
        if family not in folders:
            folders[family] = str(tmp_path_factory.mktemp(family))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(WITH_DROPOUT[family])
                model.save_pretrained(folders[family])
        return folders[family]

    return save


def logits_of(model, seed=0):
    torch.manual_seed(seed)
    return model(tiny_batch().input_ids).logits


def are_identical(model):
    """Whether forwards in train mode repeat themselves."""
    assert model.training
    first = logits_of(model)
    return all(torch.equal(logits_of(model, seed), first) for seed in range(1, 5))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", list(WITH_DROPOUT))
def test_without_dropout_forwards_in_train_mode_are_identical(folder, family, attention):
    """G4: dropout modules, numbers such as Llama's attention_dropout, and skipped layers."""
    config = {"path": folder(family), "attn_implementation": attention}
    assert are_identical(build_policy(PolicyConfig(**config)))
    assert not are_identical(build_policy(PolicyConfig(**config, disable_dropout=False)))


def test_dropout_that_is_read_from_the_config_in_every_forward():
    config = transformers.FalconConfig(
        vocab_size=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    disable_dropout(model)
    assert are_identical(model)


def filled_adapters(policy):
    """Let the adapters do something: they start as zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return policy


@PEFT
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_dropout_of_adapters_is_disabled_too(folder, family):
    """G4: the input of the adapters has a dropout of its own."""
    config = {"path": folder(family), "lora": LoraOptions(r=4, dropout=0.5)}
    policy = filled_adapters(build_policy(PolicyConfig(**config, disable_dropout=False)))
    assert not are_identical(policy)
    disable_dropout(policy)
    assert are_identical(policy)
    with pytest.raises(InputError, match=r"lora\.dropout=0\.5 has no effect"):
        PolicyConfig(**config)


def test_disabling_dropout_changes_no_parameter(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("gpt2"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    disable_dropout(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluating_restores_each_modules_own_mode():
    model = tiny_policy()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="on purpose"), evaluating(model):
        raise RuntimeError("on purpose")
    assert [module.training for module in model.modules()] == before
    assert set(before) == {True, False}


def test_a_policy_is_loaded_in_train_mode(folder):
    policy = build_policy(PolicyConfig(path=folder("llama")))
    assert all(module.training for module in policy.modules())
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    for name, value in policy.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in policy.parameters())


@PEFT
@pytest.mark.parametrize(
    ("new", "weight"),
    [
        ({"init": "random"}, "model.layers.0.mlp.up_proj.weight"),
        (
            {"lora": LoraOptions(r=2)},
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight",
        ),
    ],
)
def test_new_weights_depend_on_their_seed_alone(folder, new, weight):
    def built(seed):
        config = PolicyConfig(path=folder("llama"), init_seed=seed, **new)
        return build_policy(config).state_dict()

    torch.manual_seed(3)
    first, state = built(1), torch.get_rng_state()
    torch.manual_seed(4)
    again, other = built(1), built(2)
    stored = build_policy(PolicyConfig(path=folder("llama"))).state_dict()
    assert torch.equal(first[weight], again[weight])
    assert not torch.equal(first[weight], other[weight])
    assert weight not in stored or not torch.equal(first[weight], stored[weight])
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)],
)
def test_parameters_have_the_type_that_is_asked_for(folder, init, dtype, expected):
    policy = build_policy(PolicyConfig(path=folder("llama"), init=init, dtype=dtype))
    assert {parameter.dtype for parameter in policy.parameters()} == {expected}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_kernel_is_the_one_that_is_asked_for(folder, attention):
    policy = build_policy(PolicyConfig(path=folder("llama"), attn_implementation=attention))
    assert policy.config._attn_implementation == attention


def test_activation_checkpointing_is_enabled_without_reentrance(folder):
    calls = []
    policy = build_policy(PolicyConfig(path=folder("llama"), activation_checkpointing=True))
    policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    logits_of(policy).sum().backward()
    assert len(calls) == 2
    assert all(parameter.grad is not None for parameter in policy.parameters())
    (keywords,) = {
        tuple(module._gradient_checkpointing_func.keywords.items())
        for module in policy.modules()
        if hasattr(module, "_gradient_checkpointing_func")
    }
    assert keywords == (("use_reentrant", False),)


@PEFT
def test_adapters_are_what_is_trained(folder):
    lora = LoraOptions(r=3, alpha=9, target_modules=["q_proj"])
    policy = build_policy(PolicyConfig(path=folder("llama"), lora=lora))
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all("q_proj.lora_" in name for name in trained)
    assert {min(p.shape) for p in trained.values()} == {3}
    assert policy.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 3.0


@PEFT
def test_lora_with_activation_checkpointing_has_the_gradients_of_plain_lora(folder):
    """G8: not zero, and the same; with an anchor, whose reference runs before the backward."""
    gradients = []
    for checkpointing in (False, True):
        module = PreferenceModule(
            PolicyConfig(
                path=folder("llama"),
                lora=LoraOptions(r=4),
                activation_checkpointing=checkpointing,
            ),
            losses={"preference": WeightedDPOLoss(), "triplet": TripletLoss()},
        )
        torch.manual_seed(0)  # of the adapters
        module.configure_model()
        filled_adapters(module.policy)
        module(tiny_batch(), sampling_seed=1).loss.mean().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert bool(gradient.any()), name
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-7, msg=name)


def test_a_path_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InputError, match=r"policy\.path='.*' cannot be loaded"):
        build_policy(PolicyConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init_seed": -1}, "expected 0 or more"),
        ({"lora": LoraOptions(), "adapter": "somewhere"}, "set one"),
    ],
)
def test_settings_that_contradict_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        PolicyConfig(path="any", **options)


@PEFT
def test_adapters_that_fit_no_layer_are_refused(folder):
    lora = LoraOptions(target_modules=["nowhere"])
    with pytest.raises(InputError, match=r"policy\.lora cannot be applied"):
        build_policy(PolicyConfig(path=folder("llama"), lora=lora))


def test_adapters_without_peft_are_refused_with_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'lit-tidpo\[lora\]'"):
        build_policy(PolicyConfig(path=folder("llama"), lora=LoraOptions()))


def test_a_seed_of_weights_that_are_not_drawn_is_refused():
    with pytest.raises(InputError, match="init_seed=1 has no effect"):
        PolicyConfig(path="anything", init_seed=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("inductor", {}),
        ("aot_eager", {"lora": LoraOptions(r=2), "activation_checkpointing": True}),
        ("aot_eager", {"dtype": "bfloat16"}),
    ],
    ids=["all parameters", "LoRA and checkpointing", "bf16"],
)
def test_compiled_layers_give_the_same_steps(tmp_path, monkeypatch, backend, options):
    """With weights from gradients, whose backward pass runs twice, and with sampled anchors.

    The generated code once; what is traced and differentiated is the same without it.
    """
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **given: compile_module(module, backend=backend, **given),
    )
    torch._dynamo.reset()
    tiny_policy().save_pretrained(tmp_path)
    found = []
    for compiled in (False, True):
        module = PreferenceModule(
            PolicyConfig(str(tmp_path), compile_layers=compiled, **options),
            losses={"preference": WeightedDPOLoss(), "triplet": TripletLoss()},
        )
        module.configure_model()
        if "lora" in options:
            filled_adapters(module.policy)
        output = module(tiny_batch(), sampling_seed=1)
        output.loss.mean().backward()
        gradients = [p.grad for p in module.built_policy.parameters() if p.grad is not None]
        logps = output.context.responses["policy.logps"].detach()
        found.append([output.loss.detach(), output.weights, logps, *gradients])
        layers = inner_model(module.built_policy).model.layers
        assert all((layer._compiled_call_impl is not None) == compiled for layer in layers)
    limits = {"rtol": 2e-2, "atol": 2e-2} if "dtype" in options else {"rtol": 1e-4, "atol": 5e-6}
    assert len(found[0]) == len(found[1]) > 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, **limits)


def test_a_model_without_named_layers_is_not_compiled():
    with pytest.raises(InputError, match="does not tell which modules are its layers"):
        compile_layers(torch.nn.Linear(2, 2))


def test_compiled_layers_are_refused_where_the_policy_is_sharded():
    run = Run(PolicyConfig("anything", compile_layers=True), precision=None, policy=None)
    with pytest.raises(InputError, match="not proven to be right with strategy model_parallel"):
        ModelParallel(None).check(run)
