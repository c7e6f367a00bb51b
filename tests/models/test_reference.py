"""The frozen reference: what it is, where it is not, and what it goes with."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.reference import (
    BaseOfAdapters,
    FrozenModel,
    InstructedModel,
    check_compatible,
)
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_batch, tiny_policy

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # by peft
)
CPU = torch.device("cpu")
NEEDS = frozenset({"reference.logps", "reference.kl"})


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


def run(policy, reference=None, needs=NEEDS):
    others = {} if reference is None else {"reference": reference}
    return Models(policy, others).run([(tiny_batch(), needs if others else frozenset())])[0]


def reference_logps(reference, policy):
    return run(policy, reference)["reference.logps"]


def logps_of_reference(module):
    return reference_logps(module.models.others["reference"], module.policy)


@pytest.fixture(scope="module")
def base_logps():
    """Of the base model, computed on its own."""
    return run(tiny_policy())["policy.logps"]


def test_the_reference_is_a_frozen_copy_in_eval_mode(base_logps):
    """G5: moving the policy moves it not, and it has no gradient."""
    policy = tiny_policy()
    reference = FrozenModel.copy_of(policy)
    move(policy)
    run(policy, reference)["policy.logps"].sum().backward()
    assert torch.equal(reference_logps(reference, policy), base_logps)
    assert not any(module.training for module in reference.model.modules())
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    assert all(parameter.grad is None for parameter in reference.model.parameters())
    assert policy.training


def test_the_reference_is_in_no_module_tree():
    """G5: neither optimizer nor checkpoint sees it."""
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(tiny_policy(), tiny_policy(seed=1))
    theirs = {id(value) for value in module.models.others["reference"].model.parameters()}
    assert theirs.isdisjoint({id(parameter) for parameter in module.parameters()})
    assert theirs.isdisjoint({id(parameter) for parameter in module.state_dict().values()})
    assert len(list(module.parameters())) == len(list(module.policy.parameters()))
    assert not any("reference" in name for name in module.state_dict())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_under_fresh_adapters_the_reference_is_the_base(base_folder, base_logps, dropout):
    """G7: exactly, also when the adapters have moved, and without their dropout."""
    lora = LoraOptions(r=4, dropout=dropout)
    module = module_of(path=base_folder, lora=lora, disable_dropout=False)
    assert isinstance(module.models.others["reference"], BaseOfAdapters)
    move(module.policy)
    torch.testing.assert_close(logps_of_reference(module), base_logps)
    results = run(module.policy, module.models.others["reference"])
    assert (results["policy.logps"] - base_logps).abs().max() > 0.1


def test_switching_adapters_off_leaves_no_trace(base_folder):
    """Modes, gradients to come and adapters are as before, even after an error."""
    module = module_of(path=base_folder, lora=LoraOptions(r=4))
    policy = module.policy
    policy.base_model.model.model.layers[0].eval()
    modes = [part.training for part in policy.modules()]
    trainable = [parameter.requires_grad for parameter in policy.parameters()]
    with suppress(RuntimeError), module.models.others["reference"].active(policy, CPU):
        assert not policy.training
        raise RuntimeError
    run(policy, module.models.others["reference"])["policy.logps"].sum().backward()
    assert [part.training for part in policy.modules()] == modes
    assert [parameter.requires_grad for parameter in policy.parameters()] == trainable
    adapters = [p for name, p in policy.named_parameters() if "lora_B" in name]
    assert adapters
    assert all(bool(parameter.grad.any()) for parameter in adapters)


def test_going_on_with_an_adapter_the_reference_is_a_frozen_copy_of_it(
    base_folder, base_logps, tmp_path
):
    """G7: neither the base nor the moving adapter."""
    start = module_of(path=base_folder, lora=LoraOptions(r=4))
    move(start.policy)
    start.policy.save_pretrained(tmp_path)
    expected = run(start.policy)["policy.logps"]
    module = module_of(path=base_folder, adapter=str(tmp_path))
    torch.testing.assert_close(logps_of_reference(module), expected)
    assert any(parameter.requires_grad for parameter in module.policy.parameters())
    move(module.policy)
    torch.testing.assert_close(logps_of_reference(module), expected)
    assert (expected - base_logps).abs().max() > 0.1


def test_a_gradient_through_a_reference_without_adapters(base_folder):
    """What `reference.embeddings` asks for works under LoRA too, and is the base's."""
    module = module_of(path=base_folder, lora=LoraOptions(r=4))
    move(module.policy)
    gradients = []
    needs = frozenset({"reference.logps", "reference.embeddings"})
    for policy, reference in (
        (module.policy, module.models.others["reference"]),
        (tiny_policy(), FrozenModel(tiny_policy())),
    ):
        results = run(policy, reference, needs)
        gradients += torch.autograd.grad(
            results["reference.logps"].sum(), results["reference.embeddings"]
        )
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_vocabularies_must_agree():
    other = tiny_policy()
    other.resize_token_embeddings(50, mean_resizing=False)
    with pytest.raises(InputError, match=r"different vocabularies \(48 and 50 entries\)"):
        check_compatible(tiny_policy(), {"reference": FrozenModel(other)}, frozenset())
    check_compatible(tiny_policy(), {"teacher": FrozenModel(tiny_policy(seed=1))}, frozenset())
    check_compatible(tiny_policy(), {}, frozenset())


def test_attention_probabilities_are_asked_of_the_model_that_is_attributed():
    eager, other = tiny_policy(attention="eager"), tiny_policy()
    frozen = {model: {"reference": FrozenModel(model)} for model in (eager, other)}
    check_compatible(eager, frozen[other], frozenset({"policy.attentions"}))
    check_compatible(other, frozen[eager], frozenset({"reference.attentions"}))
    with pytest.raises(InputError, match="attn_implementation=eager"):
        check_compatible(eager, frozen[other], frozenset({"reference.attentions"}))
    with pytest.raises(InputError, match="attn_implementation=eager"):
        check_compatible(other, {}, frozenset({"reference.attentions"}))


def test_what_spans_the_prompt_is_not_asked_of_a_model_under_another_prompt():
    others = {"told": InstructedModel([5])}
    check_compatible(tiny_policy(), others, frozenset({"told.logps", "told.kl"}))
    with pytest.raises(InputError, match=r"'told\.embeddings' spans the prompt.*models\.told"):
        check_compatible(tiny_policy(), others, frozenset({"told.embeddings"}))


# Memory


def test_a_released_reference_is_built_again_when_it_has_to_run():
    built, batch = [], tiny_batch()

    def build():
        torch.rand(1)
        built.append(tiny_policy(seed=3))
        return built[-1]

    reference = FrozenModel(tiny_policy(seed=3), build)
    policy = tiny_policy()

    def logits():
        with reference.active(policy, CPU) as model, torch.inference_mode():
            assert not model.training
            return model(batch.input_ids).logits

    expected = logits()
    assert built == []
    reference.release()
    assert reference.model is None
    state = torch.get_rng_state()
    with torch.inference_mode():
        again = logits()
    assert torch.equal(again, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(), expected)
    assert len(built) == 1
    assert not any(p.is_inference() or p.requires_grad for p in built[0].parameters())


def test_a_reference_that_cannot_be_built_again_stays():
    reference = FrozenModel(tiny_policy())
    reference.release()
    assert reference.model is not None
