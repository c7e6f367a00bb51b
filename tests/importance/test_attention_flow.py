"""Attention through all layers, and where it matters to a target."""

from __future__ import annotations

import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_rollout_importance import AttentionRolloutImportance
from lit_tidpo.importance.gradient_times_attention_importance import (
    GradientTimesAttentionImportance,
)
from lit_tidpo.testing import check_importance_estimator, tiny_batch, tiny_policy


def rows_of(batch):
    """Ids and length of the prompt of each row, alone and unpadded."""
    ends = zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    return [(batch.input_ids[row : row + 1, :end], start) for row, (start, end) in enumerate(ends)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("attributed", ["policy", "reference"])
def test_rollout_is_the_product_of_the_layers_matrices(family, attributed):
    """Multiplied out as whole matrices, in float64, from each row's own attention output."""
    models = {
        "policy": tiny_policy(family, attention="eager"),
        "reference": tiny_policy(family, seed=1, attention="eager"),
    }
    batch, estimator = tiny_batch(), AttentionRolloutImportance(0.25, attributed)
    ours = estimator.scores(run(models["policy"], batch, estimator.needs, models["reference"]))
    for row, (ids, _) in enumerate(rows_of(batch)):
        flow = torch.eye(ids.shape[1], dtype=torch.float64)
        for layer in models[attributed](ids, output_attentions=True).attentions:
            mean = layer[0].detach().double().mean(0)
            flow = (0.75 * mean + 0.25 * torch.eye(len(mean))) @ flow
        torch.testing.assert_close(
            ours[row, : ids.shape[1]].double(), flow[-1], atol=1e-5, rtol=1e-4
        )
        assert flow[-1].sum().item() == pytest.approx(1.0)


class Mixed:
    """A hand on one entry of one layer's attention: adds a step to what the layer mixes."""

    def __init__(self, model, layer, head, query, key, step):
        self.module = model.model.layers[layer].self_attn
        self.place, self.step = (0, head, query, key), step

    def __enter__(self):
        from transformers.models.llama import modeling_llama

        self.home, self.plain = modeling_llama, modeling_llama.eager_attention_forward

        def stepped(module, query, key, value, mask, **options):
            out, weights = self.plain(module, query, key, value, mask, **options)
            if module is self.module:
                batch, head, row, column = self.place
                kept = modeling_llama.repeat_kv(value, module.num_key_value_groups)
                out = out.clone()  # [N, T, heads, width]
                out[batch, row, head] += self.step * kept[batch, head, column]
            return out, weights

        modeling_llama.eager_attention_forward = stepped

    def __exit__(self, *exc):
        self.home.eager_attention_forward = self.plain


def test_gradient_times_attention_by_finite_differences():
    """Each entry of both layers' attention is moved by hand, in float64 weights."""
    policy = tiny_policy(attention="eager").double()
    batch = tiny_batch(pairs=1)
    estimator = GradientTimesAttentionImportance("response_logp")
    ours = estimator.scores(run(policy, batch, estimator.needs))
    (ids, start), *_ = rows_of(batch)
    length = ids.shape[1]

    @torch.no_grad()
    def target():
        logps = policy(ids).logits[0].log_softmax(-1)
        return sum(logps[t - 1, ids[0, t]].item() for t in range(start, length))

    with torch.no_grad():
        attentions = policy(ids, output_attentions=True).attentions
    expected = torch.zeros(length)
    for layer, attention in enumerate(attentions):
        for head in range(4):
            for query in range(start, length):
                for key in range(query + 1):
                    values = []
                    for step in (1e-3, -1e-3):
                        with Mixed(policy, layer, head, query, key, step):
                            values.append(target())
                    slope = (values[0] - values[1]) / 2e-3
                    gain = max(0.0, slope * attention[0, head, query, key].item())
                    expected[key] += gain / (len(attentions) * 4)
    assert expected.max() > 1e-2
    torch.testing.assert_close(ours[0, :length].float(), expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("target", ["max_logit", "response_logits"])
@pytest.mark.parametrize("attributed", ["policy", "reference"])
def test_contract_of_the_gradient(target, attributed):
    check_importance_estimator(
        GradientTimesAttentionImportance(target, attributed, exclude_target=True)
    )


def test_contract_of_rollout_without_a_residual():
    check_importance_estimator(AttentionRolloutImportance(0.0, "reference"))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"residual=1.0: expected a number from 0 to 1"):
        AttentionRolloutImportance(1.0)
    with pytest.raises(InputError, match="target='loss': expected one of"):
        GradientTimesAttentionImportance("loss")
