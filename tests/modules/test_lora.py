"""Adapters: what is trained, and what it is compared with (G7, G8)."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig

from .runs import (
    LORA,
    NO_TRIPLET,
    QUIET,
    SHORT,
    assert_same,
    fit,
    logits,
    make_module,
    parameters,
    reference_of,
)

pytestmark = QUIET


def is_adapter(name):
    return "lora_" in name


def test_adapters_move_and_the_base_is_the_reference(model_folder, data):
    module = make_module(model_folder, policy=LORA, anchor=SHORT)
    recorder = fit(module, data)
    base = build_policy(PolicyConfig(path=model_folder))
    start = dict(base.named_parameters())
    trained = {
        name.replace("policy.base_model.model.", "").replace("base_layer.", ""): value
        for name, value in parameters(module).items()
    }
    assert {name for name in trained if not is_adapter(name)} == set(start)
    for name, value in start.items():
        assert torch.equal(trained[name], value)
    assert all(is_adapter(name) for name in recorder.gradients[-1])
    assert all(value.abs().max() > 1e-4 for name, value in trained.items() if "lora_B" in name)
    assert {
        name for name, parameter in module.named_parameters() if parameter.requires_grad
    } == set(recorder.gradients[-1])
    # one model serves as both: its log-probs as the reference are those of the base alone
    assert reference_of(module).model is None
    assert recorder.metrics[0]["train/rewards/chosen"] == 0.0
    (window,) = recorder.windows[-1]
    found = module(window)
    assert found.context["chosen"].log_ratios.abs().max() > 1e-3
    alone = make_module(model_folder, **NO_TRIPLET)
    alone.configure_model()
    expected = alone(window)
    for role in ("chosen", "rejected"):
        torch.testing.assert_close(
            found.context[role]["reference.logps"],
            expected.context[role]["policy.logps"].detach(),
        )
    assert all(child.training for child in module.policy.modules())


def test_a_separate_reference_gives_the_same_training(model_folder, data):
    """Switching adapters off between the policy's forwards leaves its gradients alone."""

    def run(**options):
        module = make_module(model_folder, policy=LORA, anchor=SHORT, **options)
        return fit(module, data)

    shared, separate = run(), run(reference=model_folder)
    for one, other in zip(shared.metrics, separate.metrics, strict=True):
        assert_same(one, other, atol=1e-4)
    for one, other in zip(shared.gradients, separate.gradients, strict=True):
        assert_same(one, other, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
@pytest.mark.parametrize("save_frozen", [True, False])
def test_adapters_resume(model_folder, data, tmp_path, save_frozen):
    def module():
        policy = {"lora": LoraOptions(r=2, dropout=0.2), "disable_dropout": False}
        return make_module(model_folder, policy={**policy, "save_frozen": save_frozen})

    options = {"max_epochs": 2, "max_steps": -1}
    whole = fit(module(), data, tmp_path, **options)
    path = str(tmp_path / "step=2.ckpt")
    resumed = module()
    rest = fit(resumed, data, ckpt_path=path, **options)
    assert rest.metrics == whole.metrics[2:]
    assert_same(rest.parameters[-1], whole.parameters[-1])
    assert reference_of(resumed).model is None


def test_going_on_with_an_adapter(model_folder, data, batch, adapter):
    module = make_module(model_folder, policy={"adapter": adapter}, **NO_TRIPLET)
    recorder = fit(module, data)
    assert set(recorder.gradients[-1]) == {name for name in parameters(module) if is_adapter(name)}
    # the reference is the adapter as it was, not the base
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    start = peft.PeftModel.from_pretrained(base, adapter).eval()
    frozen = logits(reference_of(module).model, batch)
    torch.testing.assert_close(frozen, logits(start, batch))
    assert not any(parameter.requires_grad for parameter in reference_of(module).model.parameters())
    with start.disable_adapter():
        assert (frozen - logits(start, batch)).abs().max() > 0.1
    assert (frozen - logits(module.policy, batch)).abs().max() > 1e-3
    assert recorder.metrics[0]["train/rewards/chosen"] == 0.0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activation_checkpointing(model_folder, data, precision):
    def run(checkpointing):
        module = make_module(
            model_folder, policy={**LORA, "activation_checkpointing": checkpointing}, anchor=SHORT
        )
        return fit(module, data, precision=precision)

    checkpointed, plain = run(True), run(False)
    for name, gradient in checkpointed.gradients[-1].items():
        assert gradient.abs().max() > 1e-6, name
    for one, other in zip(checkpointed.gradients, plain.gradients, strict=True):
        assert_same(one, other, atol=1e-7 if precision == "32-true" else 1e-4)


@pytest.mark.parametrize("more", [{}, {"activation_checkpointing": True}])
def test_offloaded_activations_change_nothing(model_folder, data, more):
    plain, offloaded = (
        fit(make_module(model_folder, policy={**more, **each}, anchor=SHORT), data)
        for each in ({}, {"activation_offload": True})
    )
    for one, other in zip(plain.gradients, offloaded.gradients, strict=True):
        assert_same(one, other)
    assert plain.metrics == offloaded.metrics
