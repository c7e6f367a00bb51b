"""One forward of the models against the full logits of single, unpadded rows."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from model_runs import run
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.functional import kl_divergence
from lit_tidpo.models.layout import choose_layout
from lit_tidpo.models.models import Models
from lit_tidpo.models.needs import OF_A_MODEL
from lit_tidpo.models.reference import FrozenModel, InstructedModel
from lit_tidpo.testing import tiny_batch, tiny_groups, tiny_policy

EVERYTHING = frozenset(
    f"{model}.{field}"
    for model in ("policy", "reference")
    for field, need in OF_A_MODEL.items()
    if not (model == "policy" and need.compared)
    if need.shape != "a function" and field != "router_loss"
)
WITHOUT_ATTENTIONS = EVERYTHING - {"policy.attentions", "reference.attentions"}
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


def quantities(policy, reference, batch, needs=EVERYTHING):
    results = run(policy, batch, needs, reference)
    return {
        "logps": results["policy.logps"],
        "reference_logps": results["reference.logps"],
        "kl": results["reference.kl"],
        "labels": results["policy.label_logits"],
        "final": results["policy.final_logits"],
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
def test_the_narrowed_forward_equals_the_full_logits(family):
    """L9: log-probs, KL, and logits of labels and of the last token; zero off the response."""
    policy, reference = (tiny_policy(family, seed, "eager") for seed in (0, 1))
    batch, sizes = tiny_batch(), []
    handle = policy.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(output.shape[:-1].numel())
    )
    ours = quantities(policy, reference, batch)
    handle.remove()
    # Each row's response tokens and its last token, and no other position.
    assert sum(sizes) == int(batch.response_mask.sum()) + 6
    assert_all_close(ours, naive(policy, reference, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_narrowed_forward_has_the_gradients_of_the_full_logits(family):
    """L9: of the parameters, for a loss over all that has a graph; 1e-5 of the largest."""
    batch, gradients = tiny_batch(), []
    for compute in (quantities, naive):
        policy, reference = (tiny_policy(family, seed, "eager") for seed in (0, 1))
        values = compute(policy, reference, batch)
        loss = sum(values[name].sin().sum() for name in ("logps", "kl", "labels", "final"))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("logits_at_once", [1, 2**24])
def test_hidden_states_are_those_that_predict_each_response_token(family, logits_at_once):
    """Against the model's own hidden states, gradients included."""
    policy, batch = tiny_policy(family), tiny_batch()
    needs = frozenset({"policy.hidden"})
    ours = Models(policy, logits_at_once=logits_at_once).run([(batch, needs)])[0]["policy.hidden"]
    output = policy(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    expected = output.hidden_states[-1].roll(1, dims=1) * batch.response_mask.unsqueeze(-1)
    torch.testing.assert_close(ours, expected)
    gradients = [
        torch.autograd.grad(values.sin().sum(), policy.get_input_embeddings().weight)[0]
        for values in (ours, expected)
    ]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_hidden_states_of_a_head_that_is_no_module_are_refused():
    policy, batch = HeadlessModel(tiny_policy()), tiny_batch()
    with pytest.raises(InputError, match="HeadlessModel hands out no last hidden states"):
        Models(policy).run([(batch, frozenset({"policy.hidden"}))])


@pytest.mark.parametrize("kind", [HeadlessModel, BroadHead])
def test_a_head_that_cannot_be_narrowed_computes_every_position(kind):
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    batch, hidden = tiny_batch(), {"policy.hidden", "reference.hidden"}
    ours = quantities(kind(policy), kind(reference), batch, WITHOUT_ATTENTIONS - hidden)
    assert_all_close(ours, naive(policy, reference, batch))


def test_without_asking_for_final_logits_only_predicting_positions_are_computed():
    policy, batch, sizes = tiny_policy(), tiny_batch(), []
    policy.lm_head.register_forward_hook(
        lambda module, inputs, output: sizes.append(output.shape[:-1].numel())
    )
    results = run(policy, batch)
    assert sum(sizes) == int(batch.response_mask.sum())
    expected = naive(policy, policy, batch)["logps"]
    torch.testing.assert_close(results["policy.logps"], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_the_amount_of_padding_nor_its_id_moves_anything(family):
    """D7: less than 1e-6 nats per token, in fp32."""
    policy, reference = (tiny_policy(family, seed, "eager") for seed in (0, 1))
    batch = tiny_batch()
    expected = quantities(policy, reference, batch)
    for extra, pad in ((0, 2), (0, 40), (13, 0), (13, 2)):
        ids = torch.cat([batch.input_ids, torch.zeros(6, extra, dtype=torch.long)], dim=1)
        padded = dataclasses.replace(batch, input_ids=ids, supplied_weights=None)
        ids.masked_fill_(~padded.attention_mask, pad)
        ours = quantities(policy, reference, padded)
        for name in ("logps", "reference_logps", "kl"):
            difference = (ours[name][:, : batch.input_ids.shape[1]] - expected[name]).abs().max()
            assert difference < 1e-6, (name, extra, pad)
            assert not bool(ours[name][:, batch.input_ids.shape[1] :].any())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [0, 2])
def test_a_padding_token_inside_a_row_hides_nothing(family, pad):
    """D3: masks come from the lengths, so real tokens of that id count; also with pad == eos."""
    policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
    policy.config.pad_token_id = policy.generation_config.pad_token_id = pad
    batch = tiny_batch()
    batch.input_ids[:, 1] = pad
    batch.input_ids[:, 4] = pad
    batch.input_ids.masked_fill_(~batch.attention_mask, pad)
    needs = WITHOUT_ATTENTIONS
    assert_all_close(quantities(policy, reference, batch, needs), naive(policy, reference, batch))


def test_what_nobody_asked_for_is_not_computed():
    calls = []
    reference = tiny_policy(seed=1)
    reference.register_forward_pre_hook(lambda *_: calls.append(1))
    results = run(tiny_policy(), tiny_batch(), (), reference)
    assert results.keys() == {"policy.logps"}
    assert calls == []
    with pytest.raises(InputError, match=r"'reference\.logps' was not computed, only"):
        results.log_ratios  # noqa: B018


def test_the_divergence_alone_runs_the_reference_once():
    calls = []
    reference = tiny_policy(seed=1)
    reference.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    needs = {"reference.kl", "reference.logps"}
    results = run(tiny_policy(), tiny_batch(), needs, reference)
    assert calls == [False]  # and without a graph
    assert results["reference.kl"].requires_grad
    assert not results["reference.logps"].requires_grad


def test_the_divergence_has_no_gradient_for_the_reference():
    """Even where an estimator asks for a graph of the reference."""
    reference = tiny_policy(seed=1)
    needs = {"reference.kl", "reference.embeddings"}
    results = run(tiny_policy(), tiny_batch(), needs, reference)
    (gradient,) = torch.autograd.grad(
        results["reference.kl"].sum(), results["reference.embeddings"], allow_unused=True
    )
    assert gradient is None


def test_embeddings_are_in_the_graph_of_the_logits():
    policy, batch = tiny_policy(), tiny_batch()
    results = run(policy, batch, {"policy.embeddings"})
    assert torch.equal(results["policy.embeddings"], policy.model.embed_tokens(batch.input_ids))
    (gradient,) = torch.autograd.grad(results["policy.logps"].sum(), results["policy.embeddings"])
    assert bool(gradient.any())


def test_a_policy_equal_to_its_reference_has_neither_ratio_nor_divergence():
    """L1: to the tolerance of fp32."""
    policy, batch = tiny_policy(), tiny_batch()
    needs = {"reference.kl", "reference.logps"}
    results = run(policy, batch, needs, copy.deepcopy(policy))
    assert results.log_ratios.abs().max() < 1e-6
    assert results["reference.kl"].abs().max() < 1e-6
    assert results["policy.logps"].abs().max() > 1


def test_bf16_models_give_fp32_values():
    policy, reference = tiny_policy().bfloat16(), tiny_policy(seed=1).bfloat16()
    batch = tiny_batch()
    needs = WITHOUT_ATTENTIONS
    results = run(policy, batch, needs, reference)
    logits = policy(batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    for value in (
        results[need] for need in ("policy.logps", "reference.kl", "policy.label_logits")
    ):
        assert value.dtype == torch.float32
    # The same bf16 logits, with the log-softmax in fp64.
    row, t = 0, int(batch.prompt_lengths[0])
    exact = logits[row, t - 1].log_softmax(-1)[batch.input_ids[row, t]]
    assert results["policy.logps"][row, t].item() == pytest.approx(exact.item(), abs=1e-5)


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
    arguments = (models["policy"], tiny_batch(), WITHOUT_ATTENTIONS, models["reference"])
    if fails:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            run(*arguments)
    else:
        run(*arguments)
    assert [hooks_of(model) for model in models.values()] == before
    assert torch.is_grad_enabled()


def test_a_model_without_the_methods_of_transformers_is_refused():
    with pytest.raises(InputError, match="Linear has no get_input_embeddings"):
        run(nn.Linear(2, 2), tiny_batch())
    headless = HeadlessModel(tiny_policy(), method=False)
    with pytest.raises(InputError, match="HeadlessModel has no get_output_embeddings"):
        run(headless, tiny_batch())


# Further models


def test_the_divergences_of_several_models_are_each_their_own():
    policy, batch = tiny_policy(), tiny_batch()
    models = {"reference": tiny_policy(seed=1), "teacher": tiny_policy(seed=2)}
    others = {name: FrozenModel(model) for name, model in models.items()}
    (results,) = Models(policy, others).run(
        [(batch, frozenset({"reference.kl", "teacher.kl", "teacher.logps"}))]
    )
    assert results.keys() == {"policy.logps", "reference.kl", "teacher.kl", "teacher.logps"}
    full = {
        name: model(batch.input_ids, attention_mask=batch.attention_mask).logits
        for name, model in {"policy": policy, **models}.items()
    }
    for name in models:
        kl = kl_divergence(full[name], full["policy"]).roll(1, dims=-1)
        expected = kl.masked_fill(~batch.response_mask, 0.0)
        torch.testing.assert_close(results[f"{name}.kl"], expected, atol=2e-5, rtol=1e-5)
        assert results[f"{name}.kl"].requires_grad


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prompt"])
@pytest.mark.parametrize("begin", [None, 1])
def test_a_model_under_another_prompt_gives_the_response_behind_it(layout, begin):
    """The instruction stands before the prompt, behind the token that begins a sequence."""
    policy, teacher, batch = tiny_policy(), tiny_policy(seed=2), tiny_batch()
    batch.input_ids[:, 0] = 1
    choose_layout(layout, [policy, teacher], frozenset())
    needs = frozenset({f"{name}.{field}" for name in ("told", "self") for field in ("logps", "kl")})
    others = {
        "told": InstructedModel([7, 8, 9], begin, FrozenModel(teacher)),
        "self": InstructedModel([7, 8, 9], begin),
    }
    (results,) = Models(policy, others, layout).run([(batch, needs)])
    start = 0 if begin is None else 1
    for name, model in (("told", teacher), ("self", policy)):
        for row, length in enumerate(batch.lengths.tolist()):
            ids = batch.input_ids[row, :length].tolist()
            ids = torch.tensor([[*ids[:start], 7, 8, 9, *ids[start:]]])
            logps = model(ids).logits[0].log_softmax(-1)
            own = policy(batch.input_ids[row : row + 1, :length]).logits[0].log_softmax(-1)
            for t in range(int(batch.prompt_lengths[row]), length):
                expected = logps[t + 2, ids[0, t + 3]].item()
                assert results[f"{name}.logps"][row, t].item() == pytest.approx(expected, abs=2e-5)
                kl = (logps[t + 2].exp() * (logps[t + 2] - own[t - 1])).sum().item()
                assert results[f"{name}.kl"][row, t].item() == pytest.approx(kl, abs=2e-5)
        assert not results[f"{name}.logps"].requires_grad
    assert policy.training


# Groups


@pytest.mark.parametrize("tile", [2**24, 96], ids=["all logits", "tiles of two tokens"])
@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prompt"])
def test_ragged_groups_have_the_values_and_gradients_of_single_rows(layout, tile):
    groups, policy, reference = tiny_groups(4), tiny_policy(), tiny_policy(seed=1)
    choose_layout(layout, [policy, reference], frozenset())
    needs = {"reference.logps", "reference.kl"}
    ours = run(policy, groups, needs, reference, layout=layout, logits_at_once=tile)
    expected = naive(policy, reference, groups)
    for need, name in (("policy.logps", "logps"), ("reference.kl", "kl")):
        torch.testing.assert_close(ours[need], expected[name], atol=2e-5, rtol=1e-5)
    gradients = []
    for logps, kl in ((ours["policy.logps"], ours["reference.kl"]),
                      (expected["logps"], expected["kl"])):  # fmt: skip
        found = torch.autograd.grad((logps.sin() + kl.sin()).sum(), list(policy.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, atol=1e-5, rtol=0)
