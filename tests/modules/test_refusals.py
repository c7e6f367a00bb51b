"""What the modules refuse, with the reason."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.sparse_po_loss import SparsePOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.seeding import seeded
from lit_tidpo.strategies.fully_sharded import FullySharded
from lit_tidpo.strategies.model_parallel import ModelParallel, split_matrices
from lit_tidpo.testing import tiny_batch, tiny_policy
from lit_tidpo.testing.conformance import _alone

from .runs import (
    LORA,
    NO_TRIPLET,
    QUIET,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
)

pytestmark = QUIET


def _split_mesh():
    strategy = ModelParallelStrategy()
    strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    return strategy


def _shared_mesh():
    strategy = ModelParallelStrategy()
    sizes = {"data_parallel": 2, "tensor_parallel": 1}
    strategy._device_mesh = {
        name: SimpleNamespace(size=lambda size=size: size) for name, size in sizes.items()
    }
    return strategy


def _zero():
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # without the library
    strategy.config = {"zero_optimization": {"stage": 3}}
    return strategy


STRATEGIES = {
    "fsdp": FSDPStrategy,
    "deepspeed": _zero,
    "split": _split_mesh,
    "shared": _shared_mesh,
    "ddp": DDPStrategy,
    "ddp_spawn": lambda: DDPStrategy(start_method="spawn"),
    "ddp_notebook": lambda: DDPStrategy(start_method="fork"),
    "other": object,
}


class LearnedImportance(torch.nn.Module, ImportanceEstimator):
    needs = frozenset({"policy.embeddings"})
    learned = True

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def scores(self, results):
        return results["policy.logps"] * self.scale


@pytest.mark.parametrize(
    ("kind", "options", "trainer", "reason"),
    [
        ("other", {}, {}, "strategy object is not supported"),
        ("ddp_spawn", {}, {}, "ddp_spawn returns a module without its trained.*use strategy=ddp"),
        ("ddp_notebook", {}, {}, "ddp_fork returns a module without its trained policy"),
        ("fsdp", {}, {"precision": "bf16-mixed"}, "precision=bf16-mixed with strategy fsdp casts"),
        ("fsdp", {"importance_every": 0}, {}, "importance_every=0 runs the policy before the fi"),
        ("fsdp", {"importance": LearnedImportance()}, {}, "would not be trained"),
        ("fsdp", {}, {"accumulate": 2}, "accumulate_grad_batches with an importance made of grad"),
        ("fsdp", {"policy": {"compile_layers": True}}, {}, "compile_layers is not proven"),
        ("fsdp", {"policy": {"dtype": "bfloat16"}}, {}, "policy.dtype=bfloat16"),
        ("deepspeed", {}, {"precision": "16-mixed"}, "precision=16-mixed with strategy deepspeed"),
        ("deepspeed", {"non_finite": "skip"}, {}, "non_finite=skip cannot reach the gradients"),
        ("split", {"policy": LORA}, {}, "adapters cannot be split by tensor parallelism"),
        ("split", {"importance": AttentionImportance()}, {}, "its own heads alone"),
        ("split", {"policy": {"compile_layers": True}}, {}, "compile_layers is not proven"),
        ("shared", {"losses": {"masks": SparsePOLoss()}}, {}, "parameters of its own"),
        ("split", {"non_finite": "skip"}, {}, "would leave the others waiting"),
        ("fsdp", {"non_finite": "skip"}, {}, "would leave the others waiting"),
        (
            "fsdp",
            {"policy": {**LORA, "quantization": "nf4", "save_frozen": False}},
            {},
            "quantization='nf4' is not proven",
        ),
        ("deepspeed", {"policy": {**LORA, "save_frozen": False}}, {}, "save_frozen=false does not"),
        (
            "ddp",
            {"policy": {**LORA, "quantization": "int8", "save_frozen": False}},
            {},
            "quantization=int8 with strategy ddp",
        ),
        ("split", {}, {"precision": "bf16-true"}, "precision=bf16-true would cast the policy"),
        ("ddp", {}, {"precision": "transformer-engine"}, "transformer-engine would cast the pol"),
        ("split", {"policy": {"liger": ["rope"]}}, {}, "liger is not proven"),
    ],
)
def test_what_strategies_refuse(model_folder, kind, options, trainer, reason):
    module = make_module(model_folder, **options)
    # FSDP and DeepSpeed cannot be made by a Trainer here
    module._trainer = SimpleNamespace(
        strategy=STRATEGIES[kind](),
        precision_plugin=SimpleNamespace(precision=trainer.get("precision", "32-true")),
        accumulate_grad_batches=trainer.get("accumulate", 1),
        callbacks=[],
    )
    with pytest.raises(InputError, match=reason):
        module.setup("fit")


def test_zero_3_does_not_evaluate_alone(model_folder):
    module = make_module(model_folder)
    module._trainer = SimpleNamespace(
        strategy=_zero(),
        precision_plugin=SimpleNamespace(precision="32-true"),
        accumulate_grad_batches=1,
    )
    with pytest.raises(InputError, match=r"stage 3 without training on.*in one process"):
        module.setup("validate")


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed", "split"])
def test_strategies_that_shard_take_no_policy_that_is_there(kind):
    module = PreferenceModule(PolicyConfig())
    module.attach(tiny_policy())
    module._trainer = SimpleNamespace(
        strategy=STRATEGIES[kind](),
        precision_plugin=SimpleNamespace(precision="32-true"),
        accumulate_grad_batches=1,
    )
    with pytest.raises(InputError, match="shards a policy when it is built"):
        module.setup("fit")


def test_models_whose_matrices_cannot_be_split():
    ways = SimpleNamespace(size=lambda: 3)
    with pytest.raises(InputError, match="num_attention_heads=4, which it does not divide"):
        split_matrices(tiny_policy(), ways)
    ways = SimpleNamespace(size=lambda: 2)
    with pytest.raises(InputError, match="plan of transformers, and GPT2LMHeadModel has none"):
        split_matrices(tiny_policy("gpt2"), ways)


def test_models_that_cannot_be_attributed(model_folder):
    reentrant = tiny_policy()
    reentrant.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="reentrant activation checkpointing"):
        PreferenceModule(PolicyConfig()).attach(reentrant)
    compiled = torch.compile(tiny_policy(), backend="eager")
    with pytest.raises(InputError, match="compile its layers one by one"):
        PreferenceModule(PolicyConfig()).attach(compiled, tiny_policy())
    plain = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    plain.attach(reentrant)
    assert plain.policy is reentrant


def test_a_kernel_whose_backward_pass_runs_only_once_is_refused():
    """Bound as Liger binds its own: its SwiGLU gives other gradients the second time."""

    def forward(self, x):
        return type(self).forward(self, x)

    forward.__module__ = "liger_kernel.transformers.swiglu"
    policy = tiny_policy()
    layer = policy.model.layers[0].mlp
    layer.forward = forward.__get__(layer)
    with pytest.raises(InputError, match="apply Liger with swiglu=False"):
        PreferenceModule(PolicyConfig()).attach(policy)
    PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()}).attach(policy)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_casting_the_policy_alone_is_refused(model_folder, data, precision):
    trainer = quiet_trainer(max_steps=1, precision=precision)
    with pytest.raises(InputError, match=f"precision={precision} would cast the policy"):
        trainer.fit(make_module(model_folder), data)


def test_arguments_out_of_range_are_refused():
    config = PolicyConfig()
    for options, reason in [
        ({"importance_every": -1}, "importance_every=-1"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"lr_schedule": "step"}, "lr_schedule='step': expected one of"),
        ({"evaluation": "reward"}, "evaluation='reward': expected one of"),
        ({"layout": "shared"}, "layout='shared': expected one of"),
        ({"non_finite": "Raise"}, "non_finite='Raise': expected one of"),
        ({"weight_scale": "total"}, "weight_scale='total': expected one of"),
        ({"logits_at_once": 0}, "logits_at_once=0"),
        ({"loss_weights": {"tripelt": 0.1}}, "loss_weights names .'tripelt'."),
        ({"loss_weights": {"preference": 0, "triplet": 0}}, "every loss has the weight 0"),
    ]:
        with pytest.raises(InputError, match=reason):
            PreferenceModule(config, **options)


def test_a_schedule_needs_an_end(model_folder, source):
    endless = make_data(source, model_folder, streaming=True)
    module = make_module(model_folder, lr_schedule="linear", **NO_TRIPLET)
    with pytest.raises(InputError, match="lr_schedule='linear' needs an end"):
        quiet_trainer(max_epochs=1).fit(module, endless)


def test_rows_beyond_learned_positions_are_refused():
    """Not by an index out of range, which a GPU tells late and nowhere near."""
    policy = tiny_policy("gpt2")
    width = policy.config.max_position_embeddings + 1
    batch = dataclasses.replace(
        tiny_batch(),
        input_ids=torch.ones(6, width, dtype=torch.long),
        lengths=torch.full((6,), width),
        prompt_lengths=torch.full((6,), 3),
        supplied_weights=None,
    )
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(policy)
    with pytest.raises(
        InputError, match=rf"a row has {width} tokens.*set data.max_length to {width - 1} "
    ):
        module(batch)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_that_would_change_the_positions_of_others_are_refused(kind):
    """Beyond the original length, RoPE is stretched by the longest row of a pass."""
    batch = tiny_batch(pairs=12, weights=False)
    longest = int(batch.lengths.max())
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        half = [1.0] * 4
        parameters |= {"short_factor": half, "long_factor": [4.0] * 4}
        parameters |= {"original_max_position_embeddings": longest - 1}
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=longest - 1 if kind == "dynamic" else 64,
        rope_parameters=parameters,
    )
    with seeded(0):
        policy = LlamaForCausalLM(config)
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(policy)
    with pytest.raises(InputError, match=rf"a row has {longest} tokens.*stretches its positions"):
        module(batch)
    short = dataclasses.replace(batch, lengths=batch.lengths.clamp(max=longest - 1))
    losses = module(short).loss
    rows = [0, short.size]
    alone = module(_alone(short, 0, rows, int(short.lengths[rows].max()))).loss
    torch.testing.assert_close(losses[:1], alone)


def test_ids_without_an_embedding_are_refused():
    """Another model's tokenizer; a GPU would tell by an index out of range."""
    batch = tiny_batch()
    batch.input_ids[1, 2] = 48
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(tiny_policy())
    with pytest.raises(InputError, match=r"token id 48, but .* ids below 48: use its own tok"):
        module(batch)


def test_averages_of_a_policy_that_is_not_built_yet_are_refused(model_folder, data):
    callback = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    module = make_module(model_folder, **NO_TRIPLET)
    with pytest.raises(InputError, match=r"would average nothing.*configure_model\(\) before fit"):
        quiet_trainer(max_epochs=2, callbacks=[callback]).fit(module, data)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_lightnings_other_average_is_that_of_the_policy(model_folder, source):
    """EMA with a decay of 1/2: half of the weights after each of two steps."""

    def trained(steps, **options):
        module = make_module(model_folder, **NO_TRIPLET)
        quiet_trainer(max_steps=steps, **options).fit(module, make_data(source, model_folder))
        return parameters(module)

    one, two = trained(1), trained(2)
    averaged = trained(2, callbacks=[EMAWeightAveraging(decay=0.5)])
    for name, value in averaged.items():
        torch.testing.assert_close(value, (one[name] + two[name]) / 2, msg=name)


@pytest.mark.parametrize(("data", "ways"), [("auto", 2), (2, 2), ("auto", 4)])
def test_sizes_that_do_not_make_the_processes_are_refused(data, ways):
    strategy = ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=ways)
    with pytest.raises(InputError, match=f"tensor_parallel_size={ways} with 3 processes"):
        ModelParallel(strategy).settle(3)


def test_anchors_from_prefixes_of_several_turns_are_refused_at_set_up(source, model_folder):
    data = make_data(source, model_folder, trained_turns="all")
    module = make_module(model_folder, anchor=AnchorOptions(source="chosen_prefix"))
    with pytest.raises(InputError, match=r"anchor.source='chosen_prefix' cannot go on"):
        quiet_trainer(max_steps=1).fit(module, data)


def test_fsdp_on_one_process_is_refused():
    with pytest.raises(InputError, match="writes no checkpoint: leave the strategy out"):
        FullySharded(FSDPStrategy()).settle(1)
