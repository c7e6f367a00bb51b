"""Gradient attribution against closed forms, finite differences and Captum."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.importance.embedding_norm_importance import EmbeddingNormImportance
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.gradient_log_ratio_importance import GradientLogRatioImportance
from lit_tidpo.importance.gradient_times_input_importance import GradientTimesInputImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.integrated_gradients_importance import IntegratedGradientsImportance
from lit_tidpo.importance.relative_importance import RelativeImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.layout import choose_layout
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.objective import Objective
from lit_tidpo.structures import ResponseBatch
from lit_tidpo.testing import check_importance_estimator, tiny_batch, tiny_policy

TARGETS = ["max_logit", "response_logp", "response_logits", "log_ratio"]
FAMILIES = ["llama", "gpt2"]
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ATTRIBUTIONS = [(target, "policy") for target in TARGETS] + [
    (target, "reference") for target in TARGETS[:3]
]


def make_batch(*rows, prompts, width=None):
    """Rows of one role from lists of ids and lengths of their prompts."""
    width = width or max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ResponseBatch(
        input_ids=ids,
        prompt_lengths=torch.tensor(prompts),
        lengths=torch.tensor([len(row) for row in rows]),
        roles=("chosen",),
        index=torch.arange(len(rows)),
        counted=torch.ones(len(rows), dtype=torch.bool),
    )


def make_estimator(target, norm="l1", model="policy", exclude_target=False):
    """The class that attributes a target: the log-ratio has one of its own."""
    if target == "log_ratio":
        return GradientLogRatioImportance(norm, exclude_target)
    return GradientImportance(target, norm, model, exclude_target)


def scores_of(estimator, policy, batch, reference=None, layout="padded"):
    others = {} if reference is None else {"reference": FrozenModel(reference)}
    (results,) = Models(policy, others, layout).run([(batch, estimator.needs)])
    return estimator.scores(results).detach()


class LinearModel(nn.Module):
    """Logits at position t: U sum_{s <= t} c[t - s] gate[token_s] e_s. Linear in the embeddings."""

    def __init__(self, seed, gate=None, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(7, 5, dtype=dtype)
        self.head = nn.Linear(5, 7, bias=False, dtype=dtype)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.lags = torch.randn(16, generator=generator, dtype=dtype)
        self.gate = torch.ones(7, dtype=dtype) if gate is None else gate

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, **options):
        embeddings = self.embedding(input_ids) * self.gate[input_ids].unsqueeze(-1)
        t = torch.arange(input_ids.shape[1])
        mixing = self.lags[(t[:, None] - t).clamp(min=0)].tril()
        return SimpleNamespace(logits=self.head(mixing @ embeddings))


def closed_form(model, ids, prompt, target):
    """Gradient of the target with respect to each embedding of a row, written out in loops."""
    logits = model(torch.tensor([ids])).logits[0].tolist()
    lags, head = model.lags.tolist(), model.head.weight.tolist()
    gradient = [[0.0] * 5 for _ in ids]

    def add(position, direction):
        """The logits of `direction` (a factor for each entry) at a position."""
        for s in range(position + 1):
            for h in range(5):
                slope = sum(factor * head[v][h] for v, factor in enumerate(direction))
                gradient[s][h] += lags[position - s] * slope

    if target == "max_logit":
        last = logits[-1]
        add(len(ids) - 1, [float(v == last.index(max(last))) for v in range(7)])
        return gradient
    for t in range(prompt, len(ids)):
        direction = [float(v == ids[t]) for v in range(7)]
        if target == "response_logp":
            powers = [math.exp(logit) for logit in logits[t - 1]]
            direction = [d - p / sum(powers) for d, p in zip(direction, powers, strict=True)]
        add(t - 1, direction)
    return gradient


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(("target", "attributed"), ATTRIBUTIONS)
def test_closed_form_on_a_linear_model(target, attributed, norm):
    """W4: every target and both norms, on rows of various lengths."""
    models = {"policy": LinearModel(0), "reference": LinearModel(1)}
    rows, prompts = ([3, 1, 4, 1, 5], [2, 6, 5], [3, 5, 1, 4]), [2, 1, 3]
    batch = make_batch(*rows, prompts=prompts)
    estimator = make_estimator(target, norm, attributed)
    ours = scores_of(estimator, models["policy"], batch, models["reference"])
    for row, (ids, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if target == "log_ratio":
            parts = [closed_form(model, ids, prompt, "response_logp") for model in models.values()]
            gradient = [
                [a - b for a, b in zip(p, r, strict=True)] for p, r in zip(*parts, strict=True)
            ]
        else:
            gradient = closed_form(models[attributed], ids, prompt, target)
        order = 1 if norm == "l1" else 2
        expected = [sum(abs(x) ** order for x in token) ** (1 / order) for token in gradient]
        assert ours[row, : len(ids)].tolist() == pytest.approx(expected, rel=1e-5)
        assert ours[row, len(ids) :].tolist() == [0.0] * (5 - len(ids))


def target_of_row(model, embeddings, ids, prompt, target):
    """The target as a function of the embeddings of one row, repeated, from the full logits."""
    logits = model(inputs_embeds=embeddings).logits
    if target == "max_logit":
        return logits[:, -1].amax(-1)
    values = logits if target == "response_logits" else logits.log_softmax(-1)
    return sum(values[:, t - 1, ids[t]] for t in range(prompt, len(ids)))


@torch.no_grad()
def difference_quotients(model, ids, prompt, target, step):
    embeddings = model.get_input_embeddings()(torch.tensor(ids))
    count = embeddings.numel()
    steps = step * torch.eye(count, dtype=torch.float64).view(count, *embeddings.shape)
    up, down = (
        target_of_row(model, embeddings + sign * steps, ids, prompt, target) for sign in (1, -1)
    )
    return ((up - down) / (2 * step)).view(embeddings.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("target", "attributed"), ATTRIBUTIONS)
def test_finite_differences_on_a_transformer(family, target, attributed):
    """W4: central differences of each embedding's entries, in fp64."""
    models = {
        "policy": tiny_policy(family).double(),
        "reference": tiny_policy(family, seed=1).double(),
    }
    # Llama's norms compute in fp32 whatever the model's type, which asks for larger steps.
    step, tolerance = (1e-5, 1e-4) if family == "gpt2" else (1e-3, 2e-3)
    ids, prompt = [7, 30, 12, 12, 41, 2], 2
    batch = make_batch(ids, prompts=[prompt])
    quotients = functools.partial(difference_quotients, ids=ids, prompt=prompt, step=step)
    if target == "log_ratio":
        parts = [quotients(model, target="response_logp") for model in models.values()]
        expected = parts[0] - parts[1]
    else:
        expected = quotients(models[attributed], target=target)
    for norm, order in (("l1", 1), ("l2", 2)):
        estimator = make_estimator(target, norm, attributed)
        ours = scores_of(estimator, models["policy"], batch, models["reference"])
        torch.testing.assert_close(
            ours[0].double(), expected.norm(order, dim=-1), rtol=tolerance, atol=1e-6
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")
def test_captum_saliency_summed_over_the_embedding_is_the_l1_norm(family):
    """W4: an independent library on a whole padded batch."""
    from captum.attr import Saliency

    policy, batch = tiny_policy(family), tiny_batch()
    rows = torch.arange(len(batch.lengths))

    def largest_last_logit(embeddings):
        output = policy(inputs_embeds=embeddings, attention_mask=batch.attention_mask)
        return output.logits[rows, batch.lengths - 1].amax(-1)

    embeddings = policy.get_input_embeddings()(batch.input_ids).detach()
    expected = Saliency(largest_last_logit).attribute(embeddings, abs=True).sum(-1)
    ours = scores_of(GradientImportance(), policy, batch)
    mask = batch.attention_mask
    assert expected[mask].min() > 0
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert bool((ours[~mask] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["max_logit", "response_logp", "response_logits"])
def test_gradient_times_input_is_captums(family, target):
    """InputXGradient summed over the embedding, row by row from the full logits."""
    from captum.attr import InputXGradient

    policy, batch = tiny_policy(family), tiny_batch()
    ours = scores_of(GradientTimesInputImportance(target), policy, batch)
    for row, (prompt, length) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        ids = batch.input_ids[row, :length].tolist()
        embeddings = policy.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        aim = functools.partial(target_of_row, policy, ids=ids, prompt=prompt, target=target)
        expected = InputXGradient(aim).attribute(embeddings)[0].sum(-1).abs()
        assert expected.max() > 1e-3
        torch.testing.assert_close(
            ours[row, prompt:length], expected[prompt:], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prompt"])
@pytest.mark.parametrize("target", ["max_logit", "response_logp", "response_logits"])
def test_integrated_gradients_are_captums(target, layout):
    """From embeddings of zero in the response, row by row from the full logits."""
    from captum.attr import IntegratedGradients

    policy, batch = tiny_policy(), tiny_batch()
    rows = [slice(0, int(length)) for length in batch.lengths]
    ids = [batch.input_ids[row, kept].tolist() for row, kept in enumerate(rows)]
    expected = []
    for row_ids, prompt in zip(ids, batch.prompt_lengths.tolist(), strict=True):
        embeddings = policy.get_input_embeddings()(torch.tensor([row_ids])).detach()
        zero = embeddings.clone()
        zero[:, prompt:] = 0
        aim = functools.partial(target_of_row, policy, ids=row_ids, prompt=prompt, target=target)
        attribution = IntegratedGradients(lambda e, aim=aim: aim(e).unsqueeze(0)).attribute(
            embeddings, zero, n_steps=5, method="riemann_middle", internal_batch_size=1
        )
        expected.append(attribution[0].sum(-1).abs())
    estimator = IntegratedGradientsImportance(5, target)
    choose_layout(layout, [policy], estimator.needs)
    ours = scores_of(estimator, policy, batch, layout=layout)
    for row, (kept, wanted) in enumerate(zip(rows, expected, strict=True)):
        prompt = int(batch.prompt_lengths[row])
        assert wanted[prompt:].max() > 1e-3
        torch.testing.assert_close(ours[row, kept][prompt:], wanted[prompt:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS[:3])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_times_the_embedding_norm_it_is_the_gradient_for_the_embeddings_direction(target, norm):
    """With e = |e| u and |e| held, the gradient for u is |e| times the gradient for e."""
    model, ids, prompt = LinearModel(0), [3, 1, 4, 1, 5], 2
    batch = make_batch(ids, prompts=[prompt])
    ours = scores_of(EmbeddingNormImportance(GradientImportance(target, norm)), model, batch)[0]
    lengths = model.embedding(torch.tensor(ids)).norm(dim=-1, keepdim=True)
    attribution = torch.tensor(closed_form(model, ids, prompt, target)) * lengths
    expected = attribution.norm(1 if norm == "l1" else 2, dim=-1)
    # Scores that are combined count on the response alone.
    torch.testing.assert_close(
        ours[prompt:].double(), expected[prompt:], rtol=1e-5, atol=1e-8, check_dtype=False
    )


def test_relative_to_neighbours_leaves_the_last_token_out_of_the_mean():
    policy, batch = tiny_policy(), tiny_batch()
    plain = scores_of(GradientImportance(), policy, batch)
    estimator = RelativeImportance(GradientImportance(exclude_target=True), exclude_last=True)
    ours = scores_of(estimator, policy, batch)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        kept = plain[row, start : end - 1]  # shorter than the window: all are neighbours
        assert len(kept) <= 8
        torch.testing.assert_close(ours[row, start : end - 1], kept / kept.mean())
        assert ours[row, end - 1] == 0


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InputError, match="steps=0: expected 1 or more"):
        IntegratedGradientsImportance(0)
    with pytest.raises(InputError, match="radius=0: expected 1 or more"):
        RelativeImportance(GradientImportance(), radius=0)
    with pytest.raises(InputError, match=r"norm='l3': expected one of \('l1', 'l2'\)"):
        GradientImportance(norm="l3")
    with pytest.raises(InputError, match="target='log_ratio': expected one of"):
        GradientImportance("log_ratio")


def test_the_importance_of_a_token_multiplies_the_log_ratio_of_the_same_token():
    """A model that hears token 6 alone scores it alone; its weight meets its own log-ratio.

    Without a prior the loss is that of n d_s(chosen) - n' d_s(rejected), where s is the column of
    token 6, in rows of n and n' response tokens. Neither the column before nor the one after.
    """
    gate = torch.zeros(7, dtype=torch.float64)
    gate[6] = 1.0
    policy, other = LinearModel(0, gate), LinearModel(1, gate)
    # Once in the prompt as well, which gives the model something to predict from.
    rows = [6, 2, 3, 6, 4, 5, 2], [6, 2, 4, 3, 6, 2]
    batch = dataclasses.replace(
        make_batch(*rows, prompts=[2, 2]),
        roles=("chosen", "rejected"),
        index=torch.tensor([0]),
        counted=torch.tensor([True]),
    )
    assert (scores_of(GradientImportance(), policy, batch) > 0).nonzero().tolist() == [
        [0, 0],
        [0, 3],
        [1, 0],
        [1, 4],
    ]
    losses = {"preference": WeightedDPOLoss(alpha=0.0, beta=0.5)}
    objective = Objective(GradientImportance(), "mean", losses, {})
    loss = objective.evaluate(Models(policy, {"reference": FrozenModel(other)}), batch).loss.item()

    def log_ratio(ids, t):
        values = [
            model(torch.tensor([ids])).logits[0, t - 1].log_softmax(-1) for model in (policy, other)
        ]
        return (values[0] - values[1])[ids[t]].item()

    margins = {shift: 5 * log_ratio(rows[0], 3 + shift) - 4 * log_ratio(rows[1], 4 + shift)
               for shift in (-1, 0, 1)}  # fmt: skip
    by_shift = {shift: math.log1p(math.exp(-0.5 * margin)) for shift, margin in margins.items()}
    assert loss == pytest.approx(by_shift[0], rel=1e-5)
    assert loss != pytest.approx(by_shift[1], rel=1e-2)
    assert loss != pytest.approx(by_shift[-1], rel=1e-2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_batch_mates_order_or_padding(family, target):
    """W4, N5: a row alone and unpadded, and the same row among others, wide and with other pads."""
    policy, reference = tiny_policy(family), tiny_policy(family, seed=1)
    batch, estimator = tiny_batch(), make_estimator(target)
    whole = scores_of(estimator, policy, batch, reference)
    wide = dataclasses.replace(
        batch,
        input_ids=torch.cat([batch.input_ids, torch.zeros(6, 9, dtype=torch.long)], dim=1),
    )
    wide.input_ids.masked_fill_(~wide.attention_mask, 17)
    padded = scores_of(estimator, policy, wide, reference)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row, :length].tolist()
        alone = make_batch(ids, prompts=[int(batch.prompt_lengths[row])])
        expected = scores_of(estimator, policy, alone, reference)[0]
        for ours in (whole[row], padded[row]):
            torch.testing.assert_close(ours[:length], expected, rtol=1e-4, atol=1e-5)
            assert not bool(ours[length:].any())


def snapshot(model):
    """Everything that an estimator must leave alone."""
    state = {}
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach().clone()
        state[name, "grad"] = None if parameter.grad is None else parameter.grad.clone()
        state[name, "requires_grad"] = parameter.requires_grad
    for name, value in model.named_buffers():
        state[name, "buffer"] = value.clone()
    for name, module in model.named_modules():
        state[name, "mode"] = module.training
        state[name, "hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
    state["config"] = model.config.to_dict()
    state["generation"] = model.generation_config.to_dict()
    return state


def assert_untouched(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if torch.is_tensor(value) else value == after[key]
        assert same, key


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_changes_in_the_middle_of_accumulation(target):
    """W3: gradients, requires_grad, modes, buffers, hooks, settings and generators, by checksum."""
    policy, reference = tiny_policy(), tiny_policy(seed=1).requires_grad_(False).eval()
    policy(tiny_batch(seed=3).input_ids).logits.square().mean().backward()
    policy.model.layers[0].eval()
    policy.model.norm.weight.requires_grad_(False)
    estimator = make_estimator(target)
    before, generator = [snapshot(model) for model in (policy, reference)], torch.get_rng_state()
    scores_of(estimator, policy, tiny_batch(), reference)
    for old, model in zip(before, (policy, reference), strict=True):
        assert_untouched(old, snapshot(model))
    assert torch.equal(torch.get_rng_state(), generator)
    grads = [p.grad for p in policy.parameters()]
    assert all(grad is not None and bool(grad.any()) for grad in grads)


def accumulated(importance, weights=None, dropout=0.0, checkpointing=False):
    """Gradients after two backward passes of the loss, and the outcome of the second."""
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    for module in policy.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    if checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    losses = {"preference": WeightedDPOLoss()}
    objective = Objective(HybridImportance(importance), "mean", losses, {})
    models = Models(policy, {"reference": FrozenModel(reference)})
    torch.manual_seed(5)
    for batch in (tiny_batch(seed=1), tiny_batch(seed=2)):
        kept = None if weights is None else {"weights": weights[int(batch.input_ids[0, 0])]}
        outcome = objective.evaluate(models, batch, known=kept)
        outcome.loss.mean().backward()
        yield int(batch.input_ids[0, 0]), outcome.weights
    yield {name: p.grad for name, p in policy.named_parameters()}, torch.rand(1)


@pytest.mark.parametrize(
    "estimator",
    [GradientImportance(), IntegratedGradientsImportance(2)],
    ids=["plain", "integrated"],
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attribution_changes_no_training_gradient_and_no_dropout_mask(dropout, estimator):
    """W3: with the same weights given beforehand, two accumulated gradients are the same."""
    *weights, (gradients, draw) = accumulated(estimator, dropout=dropout)
    *_, (expected, other_draw) = accumulated(UniformImportance(), dict(weights), dropout)
    assert torch.equal(draw, other_draw)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_activation_checkpointing_without_reentrance_gives_the_same():
    """W8: scores and training gradients; the layers do run again."""
    calls = []
    policy = tiny_policy()
    policy.activation_checkpointing_enable({"use_reentrant": False})
    policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    batch = tiny_batch()
    ours = scores_of(GradientImportance(), policy, batch)
    assert len(calls) == 2
    torch.testing.assert_close(ours, scores_of(GradientImportance(), tiny_policy(), batch))
    *_, (gradients, _) = accumulated(GradientImportance(), checkpointing=True)
    *_, (expected, _) = accumulated(GradientImportance())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@PEFT
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_embeddings_under_lora(checkpointing):
    """W8: fresh adapters change nothing, so the scores are the base model's; nothing thaws."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    policy, batch = peft.get_peft_model(tiny_policy(), config), tiny_batch()
    if checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    frozen = [name for name, p in policy.named_parameters() if not p.requires_grad]
    ours = scores_of(GradientImportance(), policy, batch)
    torch.testing.assert_close(ours, scores_of(GradientImportance(), tiny_policy(), batch))
    assert [name for name, p in policy.named_parameters() if not p.requires_grad] == frozen
    assert all(p.grad is None for p in policy.parameters())


def test_fully_frozen_policy():
    policy, batch = tiny_policy().requires_grad_(False), tiny_batch()
    ours = scores_of(GradientImportance("response_logp"), policy, batch)
    expected = scores_of(GradientImportance("response_logp"), tiny_policy(), batch)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_bf16_model(target):
    """W8: finite fp32 scores whose shares are within 0.05 of those of the same model in fp32."""
    models = [tiny_policy().bfloat16(), tiny_policy(seed=1).bfloat16()]
    batch, estimator = tiny_batch(), make_estimator(target)
    ours = scores_of(estimator, *[models[0], batch, models[1]])
    exact = scores_of(estimator, models[0].float(), batch, models[1].float())
    assert ours.dtype == torch.float32
    assert bool(ours.isfinite().all())
    shares = [scores / scores.sum(-1, keepdim=True) for scores in (ours, exact)]
    assert (shares[0] - shares[1]).abs().max() < 0.05
    assert (shares[1][batch.attention_mask] - 1 / 12).abs().max() > 0.1  # not all alike


def test_the_last_tokens_own_share_can_be_left_out():
    """W7: its score becomes zero, the others stay."""
    policy, batch = tiny_policy(), tiny_batch()
    whole = scores_of(GradientImportance(), policy, batch)
    left_out = scores_of(GradientImportance(exclude_target=True), policy, batch)
    last = torch.arange(batch.input_ids.shape[1]) == batch.lengths[:, None] - 1
    assert whole[last].min() > 0
    assert torch.equal(left_out, whole.masked_fill(last, 0.0))


def module_with(importance):
    losses = {"preference": WeightedDPOLoss()}
    return PreferenceModule(PolicyConfig(), importance=importance, losses=losses)


def test_reentrant_activation_checkpointing_is_refused():
    """N6: with the reason, and only where an estimator needs input gradients."""
    policy = tiny_policy()
    policy.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="reentrant activation checkpointing"):
        module_with(GradientImportance()).attach(policy)
    module_with(UniformImportance()).attach(policy)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_model_compiled_as_a_whole_is_refused():
    with pytest.raises(InputError, match="compiled as a whole"):
        module_with(GradientImportance()).attach(torch.compile(tiny_policy()), tiny_policy())


def test_scoring_without_a_graph_fails_loudly():
    """W7: no gradients, no scores; never uniform ones."""
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        scores_of(GradientImportance(), tiny_policy(), tiny_batch())


@dataclasses.dataclass
class FreshBatches:
    """Makes its batches when asked: in validation that is in inference mode."""

    seeds: list[int]
    inference: list[bool] = dataclasses.field(default_factory=list)

    def __len__(self):
        return len(self.seeds)

    def __iter__(self):
        for seed in self.seeds:
            batch = tiny_batch(seed=seed)
            self.inference.append(batch.input_ids.is_inference())
            yield batch


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_attribution_works_in_inference_mode():
    """W5: `validate` runs in it, batches included; the means are those of the outside."""
    from lightning.pytorch import Trainer

    module = module_with(GradientImportance())
    module.attach(tiny_policy(), tiny_policy(seed=1))
    expected = torch.cat([module(tiny_batch(seed=seed)).loss.detach() for seed in (0, 1)])
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(accelerator="cpu", devices=1, **quiet)
    batches, before = FreshBatches([0, 1]), snapshot(module.policy)
    (measured,) = trainer.validate(module, batches, verbose=False)
    assert batches.inference == [True, True]
    assert measured["val/loss/total"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert_untouched(before, snapshot(module.policy))


@pytest.mark.parametrize(("target", "attributed"), ATTRIBUTIONS)
def test_contract(target, attributed):
    check_importance_estimator(make_estimator(target, model=attributed))
    check_importance_estimator(make_estimator(target, "l2", attributed, exclude_target=True))


@pytest.mark.parametrize("target", TARGETS[:3])
@pytest.mark.parametrize(
    "make",
    [
        lambda target: RelativeImportance(GradientTimesInputImportance(target)),
        lambda target: EmbeddingNormImportance(GradientImportance(target, "l2")),
        lambda target: RelativeImportance(GradientImportance(target, exclude_target=True)),
        lambda target: IntegratedGradientsImportance(2, target),
        lambda target: HybridImportance(GradientImportance(target)),
    ],
)
def test_contract_of_its_relatives_and_combinations(target, make):
    check_importance_estimator(make(target))
