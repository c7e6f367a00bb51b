"""What the modules refuse, with the reason."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_batch, tiny_policy

from .runs import (
    NO_TRIPLET,
    QUIET,
    make_data,
    make_module,
    quiet_trainer,
)

pytestmark = QUIET


def _strategy(kind):
    return {
        "fsdp": FSDPStrategy(),
        "deepspeed": DeepSpeedStrategy.__new__(DeepSpeedStrategy),
        "ddp_spawn": DDPStrategy(start_method="spawn"),
        "ddp_notebook": DDPStrategy(start_method="fork"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fsdp", "FSDPStrategy is not supported yet: gradient attribution and the frozen ref"),
        ("deepspeed", "DeepSpeedStrategy is not supported yet"),
        ("ddp_spawn", "ddp_spawn returns a module without its trained policy.*use strategy=ddp"),
        ("ddp_notebook", "ddp_fork returns a module without its trained policy"),
    ],
)
def test_strategies_that_are_refused(model_folder, kind, reason):
    module = make_module(model_folder)
    # FSDP and DeepSpeed cannot be made by a Trainer here
    stub = SimpleNamespace(strategy=_strategy(kind), precision_plugin=None)
    module._trainer = stub
    with pytest.raises(InputError, match=reason):
        module.setup("fit")


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
    with pytest.raises(InputError, match=rf"a row has {width} tokens.*lower data.max_length"):
        module(batch)
