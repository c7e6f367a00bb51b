"""Anchors: what is sampled, how it is packed, and what sampling leaves behind."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import transformers
from model_runs import run
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPTNeoConfig,
    MambaConfig,
    MambaForCausalLM,
    StaticCache,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_tidpo.errors import InputError
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.metrics.quantities import objective_quantities
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling import next_token
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.structures import ResponseBatch
from lit_tidpo.testing import tiny_batch, tiny_policy

FAMILIES = ["llama", "gpt2"]
GREEDY = AnchorOptions(max_new_tokens=8, top_k=1)
END = 2


def sample_anchors(policy, batch, options, **more):
    return Generation(options).sample(policy, batch, **more)


def tokens(batch, row):
    """Ids of a row, without its padding."""
    return batch.input_ids[row, : batch.lengths[row]].tolist()


def chosen_rows(prompts, responses):
    """A batch of chosen and (equal) rejected rows."""
    rows = [p + r for p, r in zip(prompts, responses, strict=True)] * 2
    width = max(map(len, rows))
    pairs = len(prompts)
    return ResponseBatch(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        prompt_lengths=torch.tensor([len(p) for p in prompts] * 2),
        lengths=torch.tensor([len(row) for row in rows]),
        roles=("chosen", "rejected"),
        index=10 + torch.arange(pairs),
        counted=torch.ones(pairs, dtype=torch.bool),
    )


PROMPTS = [[5, 6], [7, 8, 9, 10], [11, 12, 13]]
BATCH = chosen_rows(PROMPTS, [[20, 21, 22, 2], [23, 2], [24, 25, 26, 27, 2]])


@torch.no_grad()
def greedy_continuation(policy, ids, count):
    """The likeliest token, again and again, without cache, mask or padding."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(policy(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return ids


@pytest.mark.parametrize("source", ["prompt", "chosen_prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_anchor_is_that_of_each_row_alone(family, source):
    """T1: left padding during generation moves no position, absolute ones included."""
    policy = tiny_policy(family)
    options = dataclasses.replace(GREEDY, source=source)
    batch = tiny_batch(pairs=6)
    anchors = sample_anchors(policy, batch, options)
    assert len(set(batch.prompt_lengths.tolist())) > 2
    for row in range(6):
        prompt, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        context = prompt if source == "prompt" else prompt + (length - prompt) // 2
        expected = greedy_continuation(policy, tokens(batch, row)[:context], 8)
        assert tokens(anchors, row) == expected
        assert int(anchors.prompt_lengths[row]) == prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_log_ratios_of_anchors_are_those_of_the_unpadded_rows(family):
    """T1: anchors of various lengths behind prompts of various lengths, re-packed to the right."""
    policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
    torch.manual_seed(2)
    options = AnchorOptions(max_new_tokens=24, temperature=3.0)
    anchors = sample_anchors(policy, tiny_batch(pairs=8), options)
    new = anchors.lengths - anchors.prompt_lengths
    assert new.min() < 24
    assert new.max() == 24  # some ended, some were cut
    ours = run(policy, anchors, {"reference.logps"}, reference).log_ratios
    for row in range(8):
        ids = torch.tensor([tokens(anchors, row)])
        logps = [model(ids).logits[0].log_softmax(-1) for model in (policy, reference)]
        start = int(anchors.prompt_lengths[row])
        for t in range(start, ids.shape[1]):
            expected = (logps[0] - logps[1])[t - 1, ids[0, t]].item()
            assert ours[row, t].item() == pytest.approx(expected, abs=2e-5)
        assert not bool(ours[row, :start].any())
        assert not bool(ours[row, ids.shape[1] :].any())


def fake_generate(policy, monkeypatch, new_tokens):
    """Let generation return these tokens; gives the list of its calls."""
    calls = []

    def generate(**options):
        modes = [module.training for module in policy.modules()]
        calls.append({**options, "modes": modes, "grad": torch.is_grad_enabled()})
        return torch.cat([options["input_ids"], torch.tensor(new_tokens)], dim=1)

    monkeypatch.setattr(policy, "generate", generate)
    return calls


@pytest.mark.parametrize("pad", [0, END])
def test_an_anchor_goes_up_to_and_including_its_first_end(monkeypatch, pad):
    """T2: also where padding is the end-of-sequence token itself."""
    policy = tiny_policy()
    policy.generation_config.pad_token_id = pad
    fake_generate(policy, monkeypatch, [[9, END, pad, pad], [9, 8, 7, 6], [END, pad, pad, pad]])
    anchors = sample_anchors(policy, BATCH, AnchorOptions(max_new_tokens=4))
    assert [tokens(anchors, row) for row in range(3)] == [
        [5, 6, 9, END],
        [7, 8, 9, 10, 9, 8, 7, 6],
        [11, 12, 13, END],
    ]
    mask = [[False] * 8 for _ in range(3)]
    mask[0][2:4], mask[1][4:8], mask[2][3:4] = [True] * 2, [True] * 4, [True]
    assert anchors.response_mask.tolist() == mask
    assert anchors.roles == ("anchor",)
    assert anchors.index.tolist() == [10, 11, 12]


def test_any_of_several_ends_counts(monkeypatch):
    policy = tiny_policy()
    policy.generation_config.eos_token_id = [END, 7]
    fake_generate(policy, monkeypatch, [[9, 7, END, 0], [END, 7, 9, 9], [9, 9, 9, 7]])
    anchors = sample_anchors(policy, BATCH, AnchorOptions(max_new_tokens=4))
    assert (anchors.lengths - anchors.prompt_lengths).tolist() == [2, 1, 4]


def test_without_any_end_all_tokens_count(monkeypatch):
    policy = tiny_policy()
    policy.generation_config.eos_token_id = policy.config.eos_token_id = None
    fake_generate(policy, monkeypatch, [[9, 2], [9, 0], [0, 0]])
    anchors = sample_anchors(policy, BATCH, AnchorOptions(max_new_tokens=2))
    assert (anchors.lengths - anchors.prompt_lengths).tolist() == [2, 2, 2]


@pytest.mark.slow
def test_a_compiled_policy_samples_the_same(monkeypatch):
    """The likeliest tokens, of prompts of two widths; compiled once, for cheap without Inductor."""
    from torch._dynamo.utils import counters

    policy, compiled = tiny_policy(), dataclasses.replace(GREEDY, compiled=True)
    config = functools.partial(transformers.CompileConfig, backend="eager", mode=None)
    monkeypatch.setattr(transformers, "CompileConfig", config)
    torch._dynamo.reset()  # what another test has compiled is not compiled again
    counters.clear()
    for batch in (BATCH, tiny_batch(seed=3)):
        found, expected = (sample_anchors(policy, batch, each) for each in (compiled, GREEDY))
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.lengths, expected.lengths)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.parametrize("refused", ["GPTNeo", "alibi", "fp16"])
def test_what_cannot_be_compiled_for_sampling_is_refused(refused):
    small = {"vocab_size": 48, "hidden_size": 16, "num_attention_heads": 2, "eos_token_id": END}
    config = {
        "GPTNeo": GPTNeoConfig(**small, num_layers=1, attention_types=[[["global"], 1]]),
        "alibi": FalconConfig(**small, num_hidden_layers=1, alibi=True),
        "fp16": None,
    }[refused]
    policy = tiny_policy() if config is None else AutoModelForCausalLM.from_config(config)
    compiled = dataclasses.replace(GREEDY, compiled=True)
    words = "under fp16 autocast" if config is None else "a cache of fixed size"
    with (
        torch.autocast("cpu", torch.float16, enabled=config is None),
        pytest.raises(InputError, match=f"anchor.compiled=true: .* {words}: leave it out"),
    ):
        sample_anchors(policy, BATCH, compiled)


def test_generation_gets_left_padded_prompts_and_every_option(monkeypatch):
    """G10: no option is dropped on the way."""
    policy = tiny_policy()
    calls = fake_generate(policy, monkeypatch, [[9], [9], [9]])
    options = AnchorOptions(max_new_tokens=5, temperature=0.6, top_k=7, top_p=0.8)
    sample_anchors(policy, BATCH, options, on_any_rank=bool)
    (call,) = calls
    assert call["input_ids"].tolist() == [[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]]
    assert call["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
    expected = {
        "do_sample": False,  # our processor leaves one token in
        "max_new_tokens": 5,
        "use_cache": True,
        "synced_gpus": True,
        # or CUDA would compile the policy for each length of the cache
        "disable_compile": True,
    }
    assert {name: call[name] for name in expected} == expected
    (cache,) = (value for value in call.values() if isinstance(value, StaticCache))
    assert {layer.max_cache_len for layer in cache.layers} == {4 + 5}


def in_transformers(scores, options):
    """What transformers leaves of the scores with the same options."""
    scores = TemperatureLogitsWarper(options.temperature)(None, scores)
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(None, scores)
    return TopPLogitsWarper(options.top_p)(None, scores) if options.top_p < 1 else scores


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("top_k", [0, 1, 5, 48, 100])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_tokens_are_sampled_from_the_distribution_of_transformers(
    monkeypatch, top_k, top_p, deterministic
):
    """Top-p among the top k, whose own warpers are what the scores are compared with."""
    policy, seen, given = tiny_policy(), [], []
    draw, head = next_token._drawn, policy.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: given.append(output[:, -1].float()))

    def spy(shares):
        drawn = draw(shares)
        seen.append((shares, drawn))
        return drawn

    monkeypatch.setattr(next_token, "_drawn", spy)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    options = AnchorOptions(max_new_tokens=4, temperature=0.7, top_k=top_k, top_p=top_p)
    torch.manual_seed(0)
    anchors = sample_anchors(policy, BATCH, options)
    assert len(seen) == len(given) == 4
    for step, ((shares, drawn), scores) in enumerate(zip(seen, given, strict=True)):
        expected = in_transformers(scores, options).softmax(-1)
        ranks = scores.argsort(-1, descending=True)[:, : shares.shape[-1]]
        found = torch.zeros_like(expected).scatter(-1, ranks, shares / shares.sum(-1, keepdim=True))
        torch.testing.assert_close(found, expected, atol=2e-7, rtol=0)
        assert torch.equal(found > 0, expected > 0)
        for row, (length, prompt) in enumerate(zip(anchors.lengths, PROMPTS, strict=True)):
            if len(prompt) + step < length:
                token = anchors.input_ids[row, len(prompt) + step]
                assert token == ranks[row, drawn[row, 0]]  # what was drawn is what was taken


def test_tokens_are_drawn_as_torch_draws_them():
    shares = torch.rand(300, 50).softmax(-1).masked_fill(torch.rand(300, 50) < 0.3, 0.0)
    torch.manual_seed(3)
    expected = torch.multinomial(shares, 1)
    torch.manual_seed(3)
    assert torch.equal(next_token._drawn(shares), expected)


@pytest.mark.parametrize(
    "setting",
    [{"repetition_penalty": 1.5}, {"num_beams": 2}, {"return_dict_in_generate": True}],
)
def test_an_anchor_comes_from_the_policy_as_it_is(setting):
    """Settings that a model ships for chatting do not change what the policy samples."""
    policy = tiny_policy()
    policy.generation_config.update(**setting)
    anchors = sample_anchors(policy, BATCH, GREEDY)
    rows = [tokens(anchors, row) for row in range(3)]
    assert rows == [greedy_continuation(policy, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("fails", [False, True])
def test_generation_runs_in_eval_mode_and_restores_each_modules_own(monkeypatch, fails):
    """T3: without a graph; modes come back even after an error."""
    policy = tiny_policy()
    policy.model.layers[0].eval()
    before = [module.training for module in policy.modules()]
    calls = fake_generate(policy, monkeypatch, [[9]] * (2 if fails else 3))
    if fails:
        with pytest.raises(RuntimeError):
            sample_anchors(policy, BATCH, GREEDY)
    else:
        sample_anchors(policy, BATCH, GREEDY)
    assert not any(calls[0]["modes"])
    assert not calls[0]["grad"]
    assert [module.training for module in policy.modules()] == before
    assert True in before
    assert False in before
    assert torch.is_grad_enabled()


def sampled(policy, seed):
    torch.manual_seed(seed)
    return sample_anchors(policy, BATCH, AnchorOptions(max_new_tokens=12, temperature=2.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_samples_the_same_anchors(family):
    """T3: and another seed others."""
    policy = tiny_policy(family)
    first, again, other = (sampled(policy, seed) for seed in (1, 1, 2))
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.lengths, again.lengths)
    assert first.input_ids.shape != other.input_ids.shape or not torch.equal(
        first.input_ids, other.input_ids
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_anchor_and_the_cache_is_used(family):
    """T3: after the prompts, each step runs one token per row."""
    policy = tiny_policy(family)
    expected = sampled(policy, 1)
    policy.activation_checkpointing_enable({"use_reentrant": False})
    widths = []
    policy.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: widths.append(inputs[0].shape[1])
    )
    assert torch.equal(sampled(policy, 1).input_ids, expected.input_ids)
    assert widths[0] == 4
    assert set(widths[1:]) == {1}
    assert policy.is_activation_checkpointing
    assert policy.training


def test_a_state_space_policy_is_sampled_too():
    """It has no keys and values to keep, but a state."""
    sizes = {"vocab_size": 48, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
    policy = MambaForCausalLM(MambaConfig(**sizes, bos_token_id=1, eos_token_id=END))
    batch = chosen_rows([[5, 6, 7], [8, 9, 10]], [[9, 2], [9, 2]])
    anchors = sample_anchors(policy, batch, GREEDY)
    for row, prompt in enumerate([[5, 6, 7], [8, 9, 10]]):
        assert tokens(anchors, row) == greedy_continuation(policy, prompt, 8)


SMALL = {"vocab_size": 48, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": END}
WITHOUT_STATIC_CACHE = {
    # its window is cut out by the length of the keys
    "gpt_neo": lambda: GPTNeoConfig(
        **SMALL,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=2,
        window_size=4,
    ),
    "falcon, alibi": lambda: FalconConfig(
        **SMALL, num_hidden_layers=2, num_attention_heads=2, alibi=True
    ),
}


@pytest.mark.parametrize("family", WITHOUT_STATIC_CACHE)
def test_anchors_are_the_policys_where_it_takes_no_cache_of_fixed_size(family):
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(WITHOUT_STATIC_CACHE[family]())
    for parameter in policy.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    batch = chosen_rows([[5, 6, 7], [8, 9, 10]], [[9, 2], [9, 2]])
    anchors = sample_anchors(policy, batch, GREEDY)
    for row, prompt in enumerate([[5, 6, 7], [8, 9, 10]]):
        assert tokens(anchors, row) == greedy_continuation(policy, prompt, 8)


def test_under_bf16_the_weights_are_cast_once_and_come_back(monkeypatch):
    """Not at every token; the fp32 weights are the same tensors afterwards."""
    policy = tiny_policy()
    before = dict(policy.state_dict())
    # DDP's hooks hang there; they would be lost with the weight's own tensor.
    weights = [p for p in policy.parameters() if p.requires_grad]
    gatherers = [weight.view_as(weight).grad_fn.next_functions[0][0] for weight in weights]
    kinds = []
    generate = policy.generate

    def watched(**arguments):
        kinds.append(({p.dtype for p in policy.parameters()}, torch.is_autocast_enabled("cpu")))
        return generate(**arguments)

    monkeypatch.setattr(policy, "generate", watched)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            sampled(policy, 1)
    assert kinds == [({torch.bfloat16}, False), ({torch.float32}, True)]
    after = policy.state_dict()
    assert all(after[name].data_ptr() == value.data_ptr() for name, value in before.items())
    assert {value.dtype for value in after.values()} == {torch.float32}
    for weight, gatherer in zip(weights, gatherers, strict=True):
        assert weight.view_as(weight).grad_fn.next_functions[0][0] is gatherer


def test_policy_and_its_settings_stay_as_they_are():
    policy = tiny_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    attributes = set(vars(policy))
    settings = policy.config.to_dict(), policy.generation_config.to_dict()
    sampled(policy, 1)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert (policy.config.to_dict(), policy.generation_config.to_dict()) == settings
    assert all(parameter.grad is None for parameter in policy.parameters())
    # transformers' own static cache would note its length there, and never take a shorter one
    assert set(vars(policy)) == attributes


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_anchors_of_a_lora_policy_come_from_its_adapters():
    import peft

    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = peft.get_peft_model(tiny_policy(), config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    anchors = sample_anchors(policy, BATCH, GREEDY)
    base = tiny_policy()
    rows = [tokens(anchors, row) for row in range(3)]
    assert rows == [greedy_continuation(policy, prompt, 8) for prompt in PROMPTS]
    assert rows != [greedy_continuation(base, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("fraction", "prefixes"),
    [(0.5, [2, 1, 2]), (0.9, [3, 1, 4]), (1 - 1e-9, [3, 1, 4])],  # the last is 1 in fp32
)
def test_an_anchor_may_go_on_from_a_prefix_of_the_chosen_response(monkeypatch, fraction, prefixes):
    """Of 4, 2 and 5 tokens; at least one is left to sample. The prefix is part of the response."""
    policy = tiny_policy()
    calls = fake_generate(policy, monkeypatch, [[30, END], [31, 32], [END, 0]])
    options = AnchorOptions(source="chosen_prefix", prefix_fraction=fraction)
    anchors = sample_anchors(policy, BATCH, options)
    new = [[30, END], [31, 32], [END]]
    for row, (prompt, prefix) in enumerate(zip(PROMPTS, prefixes, strict=True)):
        context = tokens(BATCH, row)[: len(prompt) + prefix]
        given = calls[0]["attention_mask"][row].bool()
        assert calls[0]["input_ids"][row][given].tolist() == context
        assert tokens(anchors, row) == context + new[row]
        assert int(anchors.prompt_lengths[row]) == len(prompt)


def test_sampling_stays_within_the_context_window():
    """The tiny models take 128 positions: the longest prompt leaves room for three."""
    policy, long = tiny_policy("gpt2"), list(range(3, 43)) * 3 + [5] * 5
    anchors = sample_anchors(policy, chosen_rows([long, [5, 6]], [[9, 2], [9, 2]]), GREEDY)
    new = anchors.lengths - anchors.prompt_lengths
    assert new.max() == 3
    assert tokens(anchors, 0) == greedy_continuation(policy, long, 3)


def test_a_context_without_any_room_is_refused():
    full = chosen_rows([[5] * 128, [6]], [[9], [9]])
    with pytest.raises(InputError, match="no room for an anchor: the longest context has 128"):
        sample_anchors(tiny_policy(), full, GREEDY)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_new_tokens": 0}, "expected 1 or more"),
        ({"temperature": 0.0}, "expected more than 0"),
        ({"top_k": -1}, "expected 0 or more"),
        ({"top_p": 0.0}, "expected more than 0"),
        ({"top_p": 1.5}, "1 at the most"),
        ({"reuse_steps": 0}, "expected 1 or more"),
        ({"source": "chosen_prefix", "prefix_fraction": 1.0}, "expected 0 to 1"),
        ({"prefix_fraction": 0.3}, "no effect with anchor.source='prompt'"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        AnchorOptions(**options)


def module_with(gamma, policy):
    module = PreferenceModule(
        PolicyConfig(),
        losses={"preference": WeightedDPOLoss(), "triplet": TripletLoss()},
        loss_weights={"triplet": gamma},
        anchor=AnchorOptions(max_new_tokens=4),
    )
    module.attach(policy, tiny_policy(seed=1))
    return module


@pytest.mark.filterwarnings("ignore:model.anchor has no effect")
def test_gamma_zero_generates_nothing(monkeypatch):
    """T5: and a failure of generation goes through; nothing takes the anchor's place."""
    policy = tiny_policy()

    def generate(**options):
        raise RuntimeError("generation is broken")

    monkeypatch.setattr(policy, "generate", generate)
    found = module_with(0.0, policy)(tiny_batch(), sampling_seed=1)
    assert found.losses.keys() == {"preference"}
    assert "anchor" not in found.context
    with pytest.raises(InputError, match="generation is broken"):
        module_with(0.1, policy)(tiny_batch(), sampling_seed=1)


def test_empty_anchors_are_counted(monkeypatch):
    """T5: an anchor that is an end-of-sequence token and no more."""
    policy = tiny_policy()
    module = module_with(0.1, policy)
    fake_generate(policy, monkeypatch, [[END, 0, 0], [9, END, 0], [9, 9, 9]])
    found = module(BATCH, sampling_seed=1)
    quantities = objective_quantities(found, beta=0.1)
    assert quantities["anchor/empty"].tolist() == [1.0, 0.0, 0.0]
    assert quantities["anchor/length"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("source", ["prompt", "chosen_prefix"])
def test_several_responses_for_each_prompt_are_rows_of_their_own_roles(source):
    policy, batch = tiny_policy(), tiny_batch(pairs=4)
    options = AnchorOptions(max_new_tokens=12, temperature=2.0, source=source)
    torch.manual_seed(3)
    found = Generation(options).sample(policy, batch, count=3)
    assert found.roles == ("anchor_1", "anchor_2", "anchor_3")
    assert found.size == 4
    assert len(found.input_ids) == 12
    responses = {}
    for role in found.roles:
        part = found.role(role)
        for row in range(4):
            start = int(batch.prompt_lengths[row])
            assert int(part.prompt_lengths[row]) == start
            assert tokens(part, row)[:start] == tokens(batch, row)[:start]
            responses.setdefault(row, set()).add(tuple(tokens(part, row)))
    assert max(map(len, responses.values())) == 3  # they are drawn one by one


def test_sampling_runs_the_models_own_attention_and_leaves_ours_in_place():
    from lit_tidpo.models.packed_attention import PACKED_ATTENTION, use_packed_attention

    policy, plain, seen = tiny_policy(), tiny_policy(), []
    assert use_packed_attention(policy)
    policy.model.register_forward_pre_hook(
        lambda *_: seen.append(policy.config._attn_implementation)
    )
    ours = sampled(policy, 1)
    assert torch.equal(ours.input_ids, sampled(plain, 1).input_ids)
    assert set(seen) == {"sdpa"}
    assert policy.config._attn_implementation == PACKED_ATTENTION


def test_anchors_of_a_step_depend_on_its_seed_and_leave_the_global_generator_alone():
    module, batch = module_with(0.1, tiny_policy()), tiny_batch()
    state = torch.get_rng_state()
    first, again, other = (module(batch, seed).losses["triplet"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_anchors_end_where_the_data_teach_it():
    """At a token that no setting of the policy names; the settings stay as they are."""
    policy, batch = tiny_policy(), tiny_batch()
    greedy = Generation(AnchorOptions(max_new_tokens=8, top_k=1))
    free = greedy.sample(policy, batch)
    second = int(free.input_ids[0, free.prompt_lengths[0] + 1])
    greedy.further_ends = frozenset({second})
    ended = greedy.sample(policy, batch)
    assert int(ended.lengths[0] - ended.prompt_lengths[0]) <= 2
    assert int(ended.input_ids[0, ended.lengths[0] - 1]) == second
    assert policy.generation_config.eos_token_id == 2
