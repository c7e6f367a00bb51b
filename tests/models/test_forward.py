"""One forward of the models against the full logits of single, unpadded rows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_tidpo.contracts import NEEDS
from lit_tidpo.errors import InputError
from lit_tidpo.models.forward import run_models
from lit_tidpo.models.reference import Reference
from lit_tidpo.testing import tiny_batch, tiny_policy

EVERYTHING = frozenset(NEEDS) - {"weights", "anchor"}
FAMILIES = ["llama", "gpt2"]


class HeadlessModel(nn.Module):
    """A model whose output layer is no module of its own: every position is computed."""

    def __init__(self, model, method=True):
        super().__init__()
        self.model = model
        self.config = model.config
        if method:
            self.get_output_embeddings = lambda: None

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, **inputs):
        return self.model(**inputs)


class BroadHead(HeadlessModel):
    """A model whose output layer sees the positions flattened, so that it cannot be narrowed."""

    def __init__(self, model):
        super().__init__(model, method=False)

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, input_ids, attention_mask, **options):
        hidden = self.model.model(input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)).view(*input_ids.shape, -1)
        return SimpleNamespace(logits=logits)


def naive(policy, reference, batch):
    """What every need is, row by row from the full logits, in plain indexing."""
    shape = batch.input_ids.shape
    result = {name: torch.zeros(shape) for name in ("logps", "reference_logps", "kl", "labels")}
    result["final"] = torch.zeros(shape[0], 48)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        logits, other = policy(ids).logits[0], reference(ids).logits[0]
        result["final"][row] = logits[-1]
        for t in range(int(batch.prompt_lengths[row]), length):
            token = ids[0, t]
            p, r = (values[t - 1].softmax(-1) for values in (logits, other))
            result["logps"][row, t] = p[token].log()
            result["reference_logps"][row, t] = r[token].log()
            result["kl"][row, t] = (r * (r.log() - p.log())).sum()
            result["labels"][row, t] = logits[t - 1, token]
    return result


def run(policy, reference, batch, needs=EVERYTHING):
    forward = run_models(policy, Reference(reference), batch, needs)
    return {
        "logps": forward.policy.logps,
        "reference_logps": forward.reference.logps,
        "kl": forward.kl,
        "labels": forward.policy.label_logits,
        "final": forward.policy.final_logits,
    }


def assert_all_close(ours, expected, tolerance=2e-5):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            ours[name],
            value,
            atol=tolerance,
            rtol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_l9_the_narrowed_forward_equals_the_full_logits(family):
    """L9: log-probs, KL, and logits of labels and of the last token; zero off the response."""
    policy, reference = (tiny_policy(family, seed, "eager") for seed in (0, 1))
    batch, sizes = tiny_batch(), []
    handle = policy.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(output.shape[:-1].numel())
    )
    ours = run(policy, reference, batch)
    handle.remove()
    # Each row's response tokens and its last token, and no other position.
    assert sum(sizes) == int(batch.response_mask.sum()) + 6
    assert_all_close(ours, naive(policy, reference, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_l9_the_narrowed_forward_has_the_gradients_of_the_full_logits(family):
    """L9: of the parameters, for a loss over all that has a graph; 1e-5 of the largest."""
    batch, gradients = tiny_batch(), []
    for compute in (run, naive):
        policy, reference = (tiny_policy(family, seed, "eager") for seed in (0, 1))
        values = compute(policy, reference, batch)
        loss = sum(values[name].sin().sum() for name in ("logps", "kl", "labels", "final"))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [HeadlessModel, BroadHead])
def test_a_head_that_cannot_be_narrowed_computes_every_position(kind):
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    needs = EVERYTHING - {"policy.attentions", "reference.attentions"}
    batch = tiny_batch()
    ours = run(kind(policy), kind(reference), batch, needs)
    assert_all_close(ours, naive(policy, reference, batch))


def test_without_asking_for_final_logits_only_predicting_positions_are_computed():
    policy, batch, sizes = tiny_policy(), tiny_batch(), []
    policy.lm_head.register_forward_hook(
        lambda module, inputs, output: sizes.append(output.shape[:-1].numel())
    )
    forward = run_models(policy, Reference(None), batch, frozenset())
    assert sum(sizes) == int(batch.response_mask.sum())
    expected = naive(policy, policy, batch)["logps"]
    torch.testing.assert_close(forward.policy.logps, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_d7_neither_the_amount_of_padding_nor_its_id_moves_anything(family):
    """D7: less than 1e-6 nats per token, in fp32."""
    policy, reference = (tiny_policy(family, seed, "eager") for seed in (0, 1))
    batch = tiny_batch()
    expected = run(policy, reference, batch)
    for extra, pad in ((0, 2), (0, 40), (13, 0), (13, 2)):
        ids = torch.cat([batch.input_ids, torch.zeros(6, extra, dtype=torch.long)], dim=1)
        padded = dataclasses.replace(batch, input_ids=ids, supplied_weights=None)
        ids.masked_fill_(~padded.attention_mask, pad)
        ours = run(policy, reference, padded)
        for name in ("logps", "reference_logps", "kl"):
            difference = (ours[name][:, : batch.input_ids.shape[1]] - expected[name]).abs().max()
            assert difference < 1e-6, (name, extra, pad)
            assert not bool(ours[name][:, batch.input_ids.shape[1] :].any())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [0, 2])
def test_d3_a_padding_token_inside_a_row_hides_nothing(family, pad):
    """D3: masks come from the lengths, so real tokens of that id count; also with pad == eos."""
    policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
    policy.config.pad_token_id = policy.generation_config.pad_token_id = pad
    batch = tiny_batch()
    batch.input_ids[:, 1] = pad
    batch.input_ids[:, 4] = pad
    batch.input_ids.masked_fill_(~batch.attention_mask, pad)
    needs = EVERYTHING - {"policy.attentions", "reference.attentions"}
    assert_all_close(run(policy, reference, batch, needs), naive(policy, reference, batch))


def test_what_nobody_asked_for_is_not_computed():
    calls = []
    reference = tiny_policy(seed=1)
    reference.register_forward_pre_hook(lambda *_: calls.append(1))
    forward = run_models(tiny_policy(), Reference(reference), tiny_batch(), frozenset())
    assert forward.reference is None
    assert forward.kl is None
    assert calls == []
    trace = forward.policy
    assert (trace.embeddings, trace.final_logits, trace.label_logits, trace.attentions) == (
        None,
    ) * 4


def test_the_divergence_alone_runs_the_reference_once():
    calls = []
    reference = tiny_policy(seed=1)
    reference.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    needs = frozenset({"kl", "reference.logps"})
    forward = run_models(tiny_policy(), Reference(reference), tiny_batch(), needs)
    assert calls == [False]  # and without a graph
    assert forward.kl.requires_grad
    assert not forward.reference.logps.requires_grad


def test_the_divergence_has_no_gradient_for_the_reference():
    """Even where an estimator asks for a graph of the reference."""
    reference = tiny_policy(seed=1)
    needs = frozenset({"kl", "reference.embeddings"})
    forward = run_models(tiny_policy(), Reference(reference), tiny_batch(), needs)
    (gradient,) = torch.autograd.grad(
        forward.kl.sum(), forward.reference.embeddings, allow_unused=True
    )
    assert gradient is None


def test_embeddings_are_in_the_graph_of_the_logits():
    policy, batch = tiny_policy(), tiny_batch()
    forward = run_models(policy, Reference(None), batch, frozenset({"policy.embeddings"}))
    assert torch.equal(forward.policy.embeddings, policy.model.embed_tokens(batch.input_ids))
    (gradient,) = torch.autograd.grad(forward.policy.logps.sum(), forward.policy.embeddings)
    assert bool(gradient.any())


def test_l1_a_policy_equal_to_its_reference_has_neither_ratio_nor_divergence():
    """L1: to the tolerance of fp32."""
    policy, batch = tiny_policy(), tiny_batch()
    needs = frozenset({"kl", "reference.logps"})
    forward = run_models(policy, Reference.of(policy), batch, needs)
    assert (forward.policy.logps - forward.reference.logps).abs().max() < 1e-6
    assert forward.kl.abs().max() < 1e-6
    assert forward.policy.logps.abs().max() > 1


def test_l4_bf16_models_give_fp32_values():
    policy, reference = tiny_policy().bfloat16(), tiny_policy(seed=1).bfloat16()
    batch = tiny_batch()
    needs = EVERYTHING - {"policy.attentions", "reference.attentions"}
    forward = run_models(policy, Reference(reference), batch, needs)
    logits = policy(batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    for value in (forward.policy.logps, forward.kl, forward.policy.label_logits):
        assert value.dtype == torch.float32
    # The same bf16 logits, with the log-softmax in fp64.
    row, t = 0, int(batch.prompt_lengths[0])
    exact = logits[row, t - 1].log_softmax(-1)[batch.input_ids[row, t]]
    assert forward.policy.logps[row, t].item() == pytest.approx(exact.item(), abs=1e-5)


def hooks_of(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("fails", [None, "policy", "reference"])
def test_no_hook_survives_even_after_an_error(fails):
    models = {"policy": tiny_policy(), "reference": tiny_policy(seed=1)}

    def fail(*_):
        raise RuntimeError("broken on purpose")

    if fails:
        models[fails].model.norm.register_forward_pre_hook(fail)
    before = [hooks_of(model) for model in models.values()]
    arguments = (models["policy"], Reference(models["reference"]), tiny_batch())
    needs = EVERYTHING - {"policy.attentions", "reference.attentions"}
    if fails:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            run_models(*arguments, needs)
    else:
        run_models(*arguments, needs)
    assert [hooks_of(model) for model in models.values()] == before
    assert torch.is_grad_enabled()


def test_a_model_without_the_methods_of_transformers_is_refused():
    with pytest.raises(InputError, match="Linear has no get_output_embeddings"):
        run_models(nn.Linear(2, 2), Reference(None), tiny_batch(), frozenset())
    headless = HeadlessModel(tiny_policy(), method=False)
    with pytest.raises(InputError, match="HeadlessModel has no get_output_embeddings"):
        run_models(headless, Reference(None), tiny_batch(), frozenset())
