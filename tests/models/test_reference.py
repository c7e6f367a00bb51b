"""The frozen reference: what it is, where it is not, and what it goes with."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.forward import run_models
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.reference import Reference, check_compatible
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_batch, tiny_policy

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # by peft
)
CPU = torch.device("cpu")
NEEDS = frozenset({"reference.logps", "kl"})


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_policy().save_pretrained(folder)
    return str(folder)


def module_of(**policy):
    module = PreferenceModule(PolicyConfig(**policy), losses={"preference": DPOLoss()})
    module.configure_model()
    return module


def move(policy):
    """As an optimizer would: every trainable parameter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def reference_logps(reference, policy):
    return run_models(policy, reference, tiny_batch(), NEEDS).reference.logps


@pytest.fixture(scope="module")
def base_logps():
    """Of the base model, computed on its own."""
    return run_models(tiny_policy(), Reference(None), tiny_batch(), frozenset()).policy.logps


def test_g5_the_reference_is_a_frozen_copy_in_eval_mode(base_logps):
    """G5: moving the policy moves it not, and it has no gradient."""
    policy = tiny_policy()
    reference = Reference.of(policy)
    move(policy)
    run_models(policy, reference, tiny_batch(), NEEDS).policy.logps.sum().backward()
    assert torch.equal(reference_logps(reference, policy), base_logps)
    assert not any(module.training for module in reference.model.modules())
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    assert all(parameter.grad is None for parameter in reference.model.parameters())
    assert policy.training


def test_g5_the_reference_is_in_no_module_tree():
    """G5: neither optimizer nor checkpoint sees it."""
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(tiny_policy(), tiny_policy(seed=1))
    theirs = {id(value) for value in module.reference.model.parameters()}
    assert theirs.isdisjoint({id(parameter) for parameter in module.parameters()})
    assert theirs.isdisjoint({id(parameter) for parameter in module.state_dict().values()})
    assert len(list(module.parameters())) == len(list(module.policy.parameters()))
    assert not any("reference" in name for name in module.state_dict())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_g7_under_fresh_adapters_the_reference_is_the_base(base_folder, base_logps, dropout):
    """G7: exactly, also when the adapters have moved, and without their dropout."""
    lora = LoraOptions(r=4, dropout=dropout)
    module = module_of(path=base_folder, lora=lora, disable_dropout=False)
    assert module.reference.model is None
    move(module.policy)
    torch.testing.assert_close(reference_logps(module.reference, module.policy), base_logps)
    forward = run_models(module.policy, module.reference, tiny_batch(), NEEDS)
    assert (forward.policy.logps - base_logps).abs().max() > 0.1


def test_g7_switching_adapters_off_leaves_no_trace(base_folder):
    """Modes, gradients to come and adapters are as before, even after an error."""
    module = module_of(path=base_folder, lora=LoraOptions(r=4))
    policy = module.policy
    policy.base_model.model.model.layers[0].eval()
    modes = [part.training for part in policy.modules()]
    trainable = [parameter.requires_grad for parameter in policy.parameters()]
    with suppress(RuntimeError), module.reference.active(policy, CPU):
        assert not policy.training
        raise RuntimeError
    run_models(policy, module.reference, tiny_batch(), NEEDS).policy.logps.sum().backward()
    assert [part.training for part in policy.modules()] == modes
    assert [parameter.requires_grad for parameter in policy.parameters()] == trainable
    adapters = [p for name, p in policy.named_parameters() if "lora_B" in name]
    assert adapters
    assert all(bool(parameter.grad.any()) for parameter in adapters)


def test_g7_going_on_with_an_adapter_the_reference_is_a_frozen_copy_of_it(
    base_folder, base_logps, tmp_path
):
    """G7: neither the base nor the moving adapter."""
    start = module_of(path=base_folder, lora=LoraOptions(r=4))
    move(start.policy)
    start.policy.save_pretrained(tmp_path)
    expected = run_models(start.policy, Reference(None), tiny_batch(), frozenset()).policy.logps
    module = module_of(path=base_folder, adapter=str(tmp_path))
    torch.testing.assert_close(reference_logps(module.reference, module.policy), expected)
    assert any(parameter.requires_grad for parameter in module.policy.parameters())
    move(module.policy)
    torch.testing.assert_close(reference_logps(module.reference, module.policy), expected)
    assert (expected - base_logps).abs().max() > 0.1


def test_a_gradient_through_a_reference_without_adapters(base_folder):
    """What `reference.embeddings` asks for works under LoRA too, and is the base's."""
    module = module_of(path=base_folder, lora=LoraOptions(r=4))
    move(module.policy)
    gradients = []
    needs = frozenset({"reference.embeddings"})
    for policy, reference in (
        (module.policy, module.reference),
        (tiny_policy(), Reference(tiny_policy())),
    ):
        trace = run_models(policy, reference, tiny_batch(), needs).reference
        gradients += torch.autograd.grad(trace.logps.sum(), trace.embeddings)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_vocabularies_must_agree():
    other = tiny_policy()
    other.resize_token_embeddings(50, mean_resizing=False)
    with pytest.raises(InputError, match=r"different vocabularies \(48 and 50 entries\)"):
        check_compatible(tiny_policy(), other, frozenset())
    check_compatible(tiny_policy(), tiny_policy(seed=1), frozenset())
    check_compatible(tiny_policy(), None, frozenset())


def test_w6_attention_probabilities_are_asked_of_the_model_that_is_attributed():
    eager, other = tiny_policy(attention="eager"), tiny_policy()
    check_compatible(eager, other, frozenset({"policy.attentions"}))
    check_compatible(other, eager, frozenset({"reference.attentions"}))
    with pytest.raises(InputError, match="attn_implementation=eager"):
        check_compatible(eager, other, frozenset({"reference.attentions"}))
    with pytest.raises(InputError, match="attn_implementation=eager"):
        check_compatible(other, None, frozenset({"reference.attentions"}))
