"""Layouts of rows and tiles of logits: every choice gives the values and gradients of the others.

The independent source is the unchanged model of transformers, run row by row without padding.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
from model_runs import run
from torch import nn
from transformers import AttentionMaskInterface

from lit_tidpo.errors import InputError
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.gradient_log_ratio_importance import GradientLogRatioImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.layout import choose_layout, head_agrees
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.models import Models
from lit_tidpo.models.packed_attention import PACKED_ATTENTION
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_batch, tiny_policy

PACKED = ["packed", "shared_prompt"]
NEEDS = frozenset(
    {
        "policy.embeddings",
        "policy.final_logits",
        "policy.label_logits",
        "policy.entropy",
        "reference.logps",
        "reference.kl",
    }
)
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 4}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral, window of 4": lambda: transformers.MistralConfig(**GROUPED, **WINDOW),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gemma3, window of 4": lambda: transformers.Gemma3TextConfig(**GROUPED, **WINDOW, head_dim=8),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2": lambda: tiny_policy("gpt2").config,
}


def model_of(family, seed=0):
    config = FAMILIES[family]()
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.train()


def row_by_row(policy, reference, batch):
    """Quantities from the full logits of each unpadded row."""
    values = {name: torch.zeros(batch.input_ids.shape) for name in ("logps", "kl", "entropy")}
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        log_p, log_q = (m(ids).logits[0].log_softmax(-1) for m in (policy, reference))
        for t in range(int(batch.prompt_lengths[row]), length):
            p, q = log_p[t - 1], log_q[t - 1]
            values["logps"][row, t] = p[ids[0, t]]
            values["entropy"][row, t] = -(p.exp() * p).sum()
            values["kl"][row, t] = (q.exp() * (q - p)).sum()
    return values


def quantities(policy, reference, batch, **ways):
    results = run(policy, batch, NEEDS, reference, **ways)
    names = {"logps": "policy.logps", "kl": "reference.kl", "entropy": "policy.entropy"}
    return {name: results[need] for name, need in names.items()}


def gradients(values, policy):
    loss = sum(value.sin().sum() for value in values.values())
    parameters = torch.autograd.grad(loss, list(policy.parameters()))
    return torch.cat([gradient.flatten() for gradient in parameters])


def with_long_prompts():
    """Prompts of more tokens than the longest response, so that no layout may skip their mask."""
    batch = tiny_batch(weights=False)
    more = torch.randint(3, 48, (batch.size, 12), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(
        batch,
        input_ids=torch.cat([more.repeat(2, 1), batch.input_ids], 1),
        prompt_lengths=batch.prompt_lengths + 12,
        lengths=batch.lengths + 12,
    )


def assert_same(ours, expected, tolerance=1e-5):
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, atol=tolerance, rtol=1e-5, msg=name)


@pytest.mark.parametrize("tile", [None, 96], ids=["all logits", "tiles of two tokens"])
@pytest.mark.parametrize("layout", ["padded", *PACKED])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [tiny_batch, with_long_prompts], ids=["short", "long prompts"])
def test_every_layout_has_the_values_and_gradients_of_single_rows(rows, family, layout, tile):
    """L9: fp32, 1e-5; gradients relative to the largest."""
    policy, reference, batch = model_of(family), model_of(family, seed=1), rows()
    expected = row_by_row(policy, reference, batch)
    wanted = gradients(expected, policy)
    assert choose_layout(layout, [policy, reference], NEEDS) == layout
    ours = quantities(policy, reference, batch, layout=layout, logits_at_once=tile or 2**24)
    assert_same(ours, expected, 2e-5)
    scale = wanted.abs().max()
    torch.testing.assert_close(gradients(ours, policy) / scale, wanted / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "estimator",
    [
        GradientImportance(),
        GradientImportance("response_logp"),
        GradientLogRatioImportance(),
    ],
    ids=["max_logit", "response_logp", "log_ratio"],
)
@pytest.mark.parametrize("layout", PACKED)
def test_attribution_of_response_tokens_is_that_of_padded_rows(layout, estimator):
    """With shared prompts the backward pass of the attribution ends at the response."""
    batch = tiny_batch()
    scores = []
    for each in ("padded", layout):
        policy, reference = tiny_policy(), tiny_policy(seed=1)
        choose_layout(each, [policy, reference], estimator.needs)
        results = run(policy, batch, estimator.needs, reference, layout=each)
        scores.append(estimator.scores(results).masked_fill(~batch.response_mask, 0.0))
    torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=1e-5)


def test_the_attribution_does_not_enter_the_prompts():
    policy, batch = tiny_policy(), tiny_batch()
    choose_layout("shared_prompt", [policy], NEEDS)
    results = run(policy, batch, {"policy.embeddings"}, layout="shared_prompt")
    (gradient,) = torch.autograd.grad(results["policy.logps"].sum(), results["policy.embeddings"])
    inside = batch.positions < batch.prompt_lengths[:, None] - 1
    assert gradient[inside].abs().sum() == 0
    assert gradient[batch.response_mask].abs().sum() > 0


@pytest.mark.parametrize("layout", PACKED)
def test_no_padding_is_computed(layout):
    """The layers see the tokens of prompts once (shared), or those of all rows, and no others."""
    policy, batch, tokens = tiny_policy(), tiny_batch(), []
    choose_layout(layout, [policy], NEEDS)
    policy.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: tokens.append(output.shape[1])
    )
    run(policy, batch, layout=layout)
    total = int(batch.lengths.sum())
    responses = int((batch.lengths - batch.prompt_lengths).sum()) + len(batch.lengths)
    prompts = int(batch.prompt_lengths[: batch.size].sum()) - batch.size
    assert tokens == ([total] if layout == "packed" else [prompts, responses])


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("rows", [tiny_batch, with_long_prompts], ids=["short", "long prompts"])
def test_no_mask_sets_all_tokens_against_all(rows, layout, monkeypatch):
    """At length masks would take more memory than all else; a plain causal kernel needs none."""
    shapes = []

    def attention(query, key, value, attn_mask=None, **options):
        shapes.append(None if attn_mask is None else tuple(attn_mask.shape))
        return sdpa(query, key, value, attn_mask=attn_mask, **options)

    sdpa = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, PACKED_ATTENTION, None)
    policy, batch = tiny_policy(), rows()
    choose_layout(layout, [policy], NEEDS)
    shapes.clear()
    run(policy, batch, layout=layout)
    responses = int((batch.lengths - batch.prompt_lengths).max()) + 1
    mask = (len(batch.lengths), 1, responses, int(batch.lengths.max()))
    masked = layout == "shared_prompt" and rows is with_long_prompts
    assert len(shapes) == (4 if layout == "shared_prompt" else 2)
    assert {shape for shape in shapes if shape} == ({mask} if masked else set())


def test_anchors_share_the_prompts_of_their_pairs():
    policy, reference, batch = tiny_policy(), tiny_policy(seed=1), tiny_batch()
    anchors = batch.role("rejected")
    anchors = dataclasses.replace(anchors, roles=("anchor",))
    requests = [(batch, NEEDS), (anchors, frozenset({"reference.logps"}))]
    results = []
    for layout in ("padded", "shared_prompt"):
        choose_layout(layout, [policy, reference], NEEDS)
        models = Models(policy, {"reference": FrozenModel(reference)}, layout)
        results.append(models.run(requests))
    for expected, ours in zip(*results, strict=True):
        for need in ("policy.logps", "reference.logps"):
            torch.testing.assert_close(ours[need], expected[need], atol=1e-5, rtol=1e-5)
    assert results[1][1].keys() == {"policy.logps", "reference.logps"}


def test_responses_with_different_prompts_are_refused():
    policy, batch = tiny_policy(), tiny_batch()
    choose_layout("shared_prompt", [policy], NEEDS)
    batch.input_ids[0, 0] += 1
    with pytest.raises(InputError, match="different prompts"):
        run(policy, batch, layout="shared_prompt")


@pytest.mark.parametrize("layout", PACKED)
def test_prompts_of_one_token_leave_nothing_to_share(layout):
    policy, batch = tiny_policy(), tiny_batch()
    batch.prompt_lengths[:] = 1
    batch.input_ids[:, 0] = 5
    results = []
    for each in ("padded", layout):
        choose_layout(each, [policy], NEEDS)
        results.append(run(policy, batch, layout=each)["policy.logps"])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft
@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)], ids=["full", "lora"])
def test_activation_checkpointing_changes_nothing(layout, lora, tmp_path):
    """W8: attribution and training gradients, with and without adapters."""
    tiny_policy().save_pretrained(tmp_path)
    estimator, batch, results = GradientImportance(), tiny_batch(), []
    for checkpointing in (False, True):
        config = PolicyConfig(str(tmp_path), lora=lora, activation_checkpointing=checkpointing)
        torch.manual_seed(0)
        policy = build_policy(config)
        choose_layout(layout, [policy], NEEDS)
        found = run(policy, batch, estimator.needs, layout=layout, logits_at_once=96)
        scores = estimator.scores(found)
        found["policy.logps"].sum().backward()
        trained = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        assert trained
        results.append((scores, torch.cat(trained)))
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_tiles_keep_their_sums_in_fp32():
    """L4: under autocast the tiles' log-probs are those of all logits at once."""
    policy, batch, results = tiny_policy(), tiny_batch(), []
    for limit in (2**26, 96):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logps = run(policy, batch, logits_at_once=limit)["policy.logps"]
        assert logps.dtype == torch.float32
        logps.sum().backward()
        results.append((logps.detach(), policy.lm_head.weight.grad.clone()))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=0)
    scale = results[0][1].abs().max()
    torch.testing.assert_close(results[1][1] / scale, results[0][1] / scale, atol=2e-2, rtol=0)


def test_tiles_hold_no_more_logits_than_they_may():
    policy, batch, sizes = tiny_policy(), tiny_batch(), []
    policy.lm_head.register_forward_hook(lambda m, i, output: sizes.append(output.shape[1]))
    results = run(policy, batch, logits_at_once=96)
    assert sizes == [0]  # the model's own output layer computes nothing
    assert results["policy.logps"].grad_fn is not None


class Recurrence(nn.Module):
    """Carries what came before along, from row to row if these are packed."""

    def forward(self, hidden):
        return hidden.cumsum(dim=1)


def test_auto_pads_where_packed_rows_would_change_the_log_probs():
    policy = tiny_policy()
    policy.model.norm = nn.Sequential(policy.model.norm, Recurrence())
    assert choose_layout("auto", [policy], NEEDS) == "padded"
    with pytest.raises(InputError, match=r"layout=packed cannot be used: .* other log-probs"):
        choose_layout("packed", [policy], NEEDS)


def test_what_a_layout_cannot_serve_is_refused_or_padded():
    eager = tiny_policy(attention="eager")
    assert choose_layout("auto", [eager], NEEDS) == "padded"
    with pytest.raises(InputError, match="does not run sdpa"):
        choose_layout("shared_prompt", [eager], NEEDS)
    policy = tiny_policy()
    assert choose_layout("auto", [policy], NEEDS, "the prompt matters") == "packed"
    with pytest.raises(InputError, match=r"layout=shared_prompt .* the prompt matters"):
        choose_layout("shared_prompt", [policy], NEEDS, "the prompt matters")
    attentions = frozenset({"policy.attentions"})
    assert choose_layout("auto", [policy], attentions) == "padded"


def test_padded_leaves_the_models_alone():
    policy = tiny_policy()
    assert choose_layout("padded", [policy], NEEDS) == "padded"
    assert policy.config._attn_implementation == "sdpa"


def test_packed_attention_is_sdpa_where_rows_are_padded():
    """Generation and plain forwards of a prepared model are bit by bit what they were."""
    policy, batch = tiny_policy(), tiny_batch()
    plain = copy.deepcopy(policy)
    choose_layout("auto", [policy], NEEDS)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    assert torch.equal(policy(**inputs).logits, plain(**inputs).logits)
    left = {name: value[:, :3] for name, value in inputs.items()}
    options = {"do_sample": False, "max_new_tokens": 5}
    assert torch.equal(policy.generate(**left, **options), plain.generate(**left, **options))


MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
HIDDEN_WINDOWS = {
    "a window": lambda: transformers.Qwen2MoeConfig(
        **GROUPED,
        **MOE,
        **WINDOW,
        shared_expert_intermediate_size=32,
        use_sliding_window=True,
        max_window_layers=0,
    ),
    "a window wider than any row": lambda: transformers.DogeConfig(**GROUPED, sliding_window=64),
    "chunks": lambda: transformers.Llama4TextConfig(
        **GROUPED,
        attention_chunk_size=64,
        num_local_experts=2,
        intermediate_size_mlp=64,
        head_dim=8,
    ),
}


@pytest.mark.parametrize("kind", HIDDEN_WINDOWS)
def test_windows_that_are_in_the_masks_alone_are_noticed(kind):
    """Packed rows take theirs from the layers; a probe of short rows would not tell."""
    model = transformers.AutoModelForCausalLM.from_config(HIDDEN_WINDOWS[kind]())
    assert choose_layout("auto", [model], frozenset()) == "padded"
    with pytest.raises(InputError, match="windows in its masks"):
        choose_layout("packed", [model], frozenset())


class ScaledLogits(transformers.LlamaForCausalLM):
    """Changes its logits after the head, as only its own code tells."""

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = 0.5 * output.logits
        return output


def test_a_head_that_is_not_the_last_word_is_noticed():
    module = PreferenceModule(PolicyConfig(), losses={"dpo": DPOLoss()}, logits_at_once=1)
    module.attach(ScaledLogits(tiny_policy().config), ScaledLogits(tiny_policy().config))
    assert module.models.own_logits
    module.attach(tiny_policy())
    assert not module.models.own_logits
    assert head_agrees(tiny_policy())
