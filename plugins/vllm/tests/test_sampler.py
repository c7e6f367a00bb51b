"""The contract of samplers, with an engine that stands in for vLLM's."""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lit_tidpo_vllm import VLLMSampler
from lit_tidpo_vllm.sampler import merged_weights

from lit_tidpo.errors import InputError
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.testing import tiny_batch, tiny_policy

GREEDY = AnchorOptions(max_new_tokens=6, top_k=1)
END = 2


class Engine:
    """The calls of ``vllm.LLM`` that are used, on another model of transformers, greedily."""

    def __init__(self, **options):
        self.options, self.calls = options, []
        self.model = tiny_policy(seed=7).eval()
        self.model.load_weights = lambda weights: self.model.load_state_dict(dict(weights))
        torch.rand(3)  # an engine draws as it likes when it is built

    def apply_model(self, function):
        self.calls.append("weights")
        return [function(self.model)]

    def reset_prefix_cache(self):
        self.calls.append("reset")

    def generate(self, prompts, parameters, use_tqdm):
        self.calls.append(parameters)
        return [
            SimpleNamespace(outputs=[self.respond(prompt["prompt_token_ids"], each)] * each.n)
            for prompt, each in zip(prompts, parameters, strict=True)
        ]

    def respond(self, ids, parameters):
        found = []
        for _ in range(parameters.max_tokens):
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids + found])).logits
            found.append(int(logits[0, -1].argmax()))
            if found[-1] in parameters.stop_token_ids:
                break
        return SimpleNamespace(token_ids=tuple(found))


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, lambda **options: SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "vllm", module)


def sampler(options=GREEDY, **given):
    made = VLLMSampler("somewhere", **given)
    made.options = options
    return made


@pytest.mark.parametrize("source", ["prompt", "chosen_prefix"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_likeliest_anchors_are_those_of_generate(count, source):
    options = AnchorOptions(max_new_tokens=6, top_k=1, source=source)
    policy, batch = tiny_policy(), tiny_batch()
    before = copy.deepcopy(policy.state_dict())
    found = sampler(options).sample(policy, batch, count)
    expected = Generation(options).sample(policy, batch, count)
    assert found.roles == expected.roles
    assert found.sampled
    for name in ("input_ids", "lengths", "prompt_lengths", "index", "counted"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert torch.equal(getattr(found.host, name), getattr(expected, name))
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_every_option_reaches_the_engine_and_seeds_are_torchs():
    options = AnchorOptions(max_new_tokens=3, temperature=0.7, top_k=0, top_p=0.9)
    made, seeds = sampler(options, max_length=99, memory=0.4, dtype="float16"), []
    made.further_ends = frozenset({9})
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.sample(tiny_policy(), tiny_batch(), 2)
        seeds.append([each.seed for each in made._engine.calls[-1]])
    assert len(set(seeds[0])) == 3
    assert seeds[1] != seeds[2]
    parameters = made._engine.calls[-1][0]
    assert (parameters.n, parameters.max_tokens, parameters.stop_token_ids) == (2, 3, [END, 9])
    assert (parameters.temperature, parameters.top_k, parameters.top_p) == (0.7, -1, 0.9)
    assert seeds[0] == seeds[1]  # building the engine moved no generator
    assert made._engine.options == {
        "model": "somewhere",
        "skip_tokenizer_init": True,
        "dtype": "float16",
        "max_model_len": 99,
        "gpu_memory_utilization": 0.4,
    }


def test_weights_are_handed_over_each_so_many_steps():
    made, policy = sampler(sync_steps=2), tiny_policy()
    for step in (0, 0, 1, 2, 3, 1):  # the last is another run's
        made.sample(policy, tiny_batch(), 1, step)
    calls = [each if isinstance(each, str) else "sample" for each in made._engine.calls]
    handed = ["weights", "reset", "sample"]
    assert calls == [*handed, "sample", "sample", *handed, "sample", *handed]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # by peft
def test_adapters_are_merged_as_peft_merges_them():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = peft.get_peft_model(tiny_policy(), config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    found = dict(merged_weights(policy))
    expected = copy.deepcopy(policy).merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_what_cannot_be_is_refused(monkeypatch):
    for wrong in ({"sync_steps": 0}, {"max_length": 1}, {"memory": 1.0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            sampler(**wrong)
    with pytest.raises(InputError, match="max_length=8: raise it"):
        sampler(max_length=8).sample(tiny_policy(), tiny_batch())
    with pytest.raises(InputError, match="one process"):
        sampler().sample(tiny_policy(), tiny_batch(), on_any_rank=bool)
    with pytest.raises(InputError, match=r"anchor\.compiled has no effect on vLLM"):
        sampler(AnchorOptions(compiled=True)).sample(tiny_policy(), tiny_batch())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="needs vLLM: pip install"):
        sampler().sample(tiny_policy(), tiny_batch())
