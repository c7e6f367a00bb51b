"""What is reported of a batch, against naive sums, TRL and numbers by hand."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.functional import sequence_sum
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.losses.base import LossComponent, LossContext, LossValues
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.metrics.quantities import (
    anchor_quantities,
    importance_quantities,
    objective_quantities,
    preference_quantities,
    quantity_names,
)
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.objective import Objective, ObjectiveValues
from lit_tidpo.structures import ResponseBatch, Results
from lit_tidpo.testing import tiny_batch, tiny_context, tiny_groups, tiny_policy


def of_mask(mask, **values):
    """Results of rows whose responses are where the mask is."""
    positions = torch.arange(mask.shape[1])
    batch = ResponseBatch(
        input_ids=torch.zeros(mask.shape, dtype=torch.long),
        prompt_lengths=(~mask & (positions < mask.int().argmax(-1)[:, None])).sum(-1),
        lengths=(positions * mask).amax(-1) + 1,
        roles=("chosen",),
        index=torch.arange(len(mask)),
        counted=torch.ones(len(mask), dtype=torch.bool),
    )
    assert torch.equal(batch.response_mask, mask)
    return Results(batch, values)


# Rewards


def naive_sum(values, mask, weights=None):
    return [
        sum(
            values[row, t].item() * (1.0 if weights is None else weights[row, t].item())
            for t in range(mask.shape[1])
            if mask[row, t]
        )
        for row in range(len(mask))
    ]


def test_rewards_weighted_and_not_equal_naive_sums():
    """L11: beta times the sum of log-ratios, without and with token weights."""
    context, beta = tiny_context(), 0.3
    ours = preference_quantities(context, beta)
    expected = {}
    for role in ("chosen", "rejected"):
        part = context[role]
        ratios = part["policy.logps"].detach() - part["reference.logps"]
        sums = naive_sum(ratios, part.mask)
        expected[f"rewards/{role}"] = [beta * value for value in sums]
        sums = naive_sum(ratios, part.mask, part["weights"])
        expected[f"rewards/weighted_{role}"] = [beta * value for value in sums]
        expected[f"logps/{role}"] = naive_sum(part["policy.logps"], part.mask)
        expected[f"kl/{role}"] = naive_sum(part["reference.kl"], part.mask)
    for name, role in (("margins", "{}"), ("weighted_margins", "weighted_{}")):
        pair = [expected[f"rewards/{role.format(side)}"] for side in ("chosen", "rejected")]
        expected[f"rewards/{name}"] = [c - r for c, r in zip(*pair, strict=True)]
    accuracies = {
        "rewards/accuracies": expected["rewards/margins"],
        "rewards/weighted_accuracies": expected["rewards/weighted_margins"],
        "logps/accuracies": [
            c - r for c, r in zip(expected["logps/chosen"], expected["logps/rejected"], strict=True)
        ],
    }
    for name, margins in accuracies.items():
        expected[name] = [float(margin > 0) for margin in margins]
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name].tolist() == pytest.approx(values, abs=1e-5), name
        assert not ours[name].requires_grad


def test_without_weights_or_divergence_there_is_nothing_to_tell_of_them():
    responses = tiny_context().responses
    kept = {need: responses[need] for need in ("policy.logps", "reference.logps")}
    names = preference_quantities(LossContext(Results(responses.batch, kept)), 0.1)
    assert "rewards/margins" in names
    assert not any("weighted" in name or "kl" in name for name in names)


def test_without_a_reference_there_are_no_rewards():
    responses = tiny_context().responses
    kept = {need: responses[need] for need in ("policy.logps", "weights")}
    names = preference_quantities(LossContext(Results(responses.batch, kept)), 0.1)
    assert names.keys() == {"logps/chosen", "logps/rejected", "logps/accuracies"}


def test_rewards_are_those_of_trl(trl_dpo):
    """L11: under the same names, TRL's trainer logs the same means."""
    policy, reference, batch = tiny_policy(), tiny_policy(seed=1), tiny_batch(pairs=5)
    _, logged, _ = trl_dpo.on_models(policy, reference, batch, beta=0.25)
    objective = Objective(
        HybridImportance(), "mean", {"preference": WeightedDPOLoss(beta=0.25)}, {}
    )
    found = objective.evaluate(Models(policy, {"reference": FrozenModel(reference)}), batch)
    ours = objective_quantities(found, objective.beta)
    names = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    for name in [*names, "logps/chosen", "logps/rejected"]:
        assert ours[name].mean().item() == pytest.approx(logged[name], abs=1e-5), name
    assert 0 < logged["rewards/accuracies"] < 1  # pairs of both kinds


@pytest.mark.parametrize("seed", range(5))
def test_swapping_chosen_and_rejected_turns_accuracy_into_its_complement(seed):
    """L10: and negates every margin; a tie is one half on both sides."""
    tied, swapped = (tiny_context(tiny_batch(6, seed), seed) for _ in range(2))
    for context in (tied, swapped):
        for role in ("chosen", "rejected"):
            for need in ("policy.logps", "reference.logps"):
                context[role][need] = context[role][need].detach().clone()
                context[role][need][0] = 0.0
    swapped["chosen"], swapped["rejected"] = swapped["rejected"], swapped["chosen"]
    first, second = preference_quantities(tied, 0.1), preference_quantities(swapped, 0.1)
    for name in ("rewards/margins", "rewards/weighted_margins"):
        assert torch.equal(first[name], -second[name])
    for name in ("rewards/accuracies", "rewards/weighted_accuracies", "logps/accuracies"):
        assert torch.equal(first[name], 1 - second[name])
        assert first[name][0] == 0.5
        assert set(first[name][1:].tolist()) <= {0.0, 1.0}


# Importance and anchors


def spread_of(weights, scores, mask):
    scores = {} if scores is None else {"scores": scores}
    tokens = of_mask(mask, weights=weights, **scores)
    return {name: value.tolist() for name, value in importance_quantities(tokens).items()}


def test_spread_of_the_weights_by_hand():
    """Shares 1/2, 1/4, 1/4: the exponential of their entropy is 2^1.5."""
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, True, False]])
    weights = torch.tensor([[9.0, 2.0, 1.0, 1.0, 9.0], [9.0, 9.0, 0.0, 3.0, 9.0]])
    raw = torch.tensor([[9.0, 1.0, 1.0, 8.0, 9.0], [9.0, 9.0, 0.0, 0.0, 9.0]])
    spread = spread_of(weights, raw, mask)
    assert spread["max_share"] == pytest.approx([0.5, 1.0])
    assert spread["effective_tokens"] == pytest.approx([2**1.5, 1.0])
    assert spread["last_token_share"] == pytest.approx([0.8, 0.5])
    assert spread["no_signal"] == [0.0, 1.0]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_weights_are_as_many_effective_tokens_as_there_are(count):
    mask = torch.arange(9)[None] < count
    spread = spread_of(torch.ones(1, 9), None, mask)
    assert spread.keys() == {"max_share", "effective_tokens"}
    assert spread["effective_tokens"] == pytest.approx([count])
    assert spread["max_share"] == pytest.approx([1 / count])


@pytest.mark.parametrize("excluded", [False, True])
def test_the_share_of_the_last_token_is_logged(excluded):
    """W7: of the raw scores, by hand from the gradient estimator's own."""
    importance = HybridImportance(GradientImportance(exclude_target=excluded))
    objective = Objective(importance, "mean", {"preference": WeightedDPOLoss()}, {})
    models = Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})
    found = objective.evaluate(models, tiny_batch())
    logged = objective_quantities(found, beta=0.1)
    for role in ("chosen", "rejected"):
        shares = []
        results = found.context[role]
        for row, mask in zip(results["scores"], results.mask, strict=True):
            kept = row[mask].tolist()
            shares.append(kept[-1] / sum(kept))
        assert logged[f"importance/{role}_last_token_share"].tolist() == pytest.approx(shares)
        assert (min(shares) == 0) == excluded


def test_length_of_anchors_and_empty_ones_by_hand():
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    values = anchor_quantities(of_mask(mask))
    assert values["anchor/length"].tolist() == [3.0, 1.0]
    assert values["anchor/empty"].tolist() == [0.0, 1.0]


class Margin(LossComponent):
    """Logs a quantity of its own."""

    quantities = ("margin",)

    def loss(self, context):
        chosen, rejected = (
            sequence_sum(context[role]["policy.logps"], context[role].mask)
            for role in ("chosen", "rejected")
        )
        return LossValues(rejected - chosen, {"margin": (chosen - rejected).mean()})


def test_every_reported_name_is_announced():
    context = tiny_context()
    losses = {"mine": DPOLoss(), "own": Margin()}
    values = {"mine": losses["mine"].loss(context), "own": losses["own"].loss(context).values}
    quantities = {"own/margin": torch.ones(3)}
    found = ObjectiveValues(values["mine"], values, quantities, context)
    reported = objective_quantities(found, beta=0.1)
    of_groups = {"rewards/mean", "logps/mean"}
    assert reported.keys() == set(quantity_names(losses)) - of_groups
    assert all(value.shape == (3,) and not value.requires_grad for value in reported.values())


# Groups


def group_context(most, policy, reference=None):
    """Groups whose sums over the response are given, row by row: role by role, then by prompt.

    Each sum is put half on the first and half on the last response token; what stands off the
    response is no number.
    """
    groups = tiny_groups(most)
    values = {}
    for name, sums in (("policy.logps", policy), ("reference.logps", reference)):
        if sums is not None:
            values[name] = torch.full(groups.input_ids.shape, torch.nan)
            values[name][groups.response_mask] = 0.0
            for row, total in enumerate(sums):
                values[name][row, groups.prompt_lengths[row]] = total / 2
                values[name][row, groups.lengths[row] - 1] = total / 2
    return LossContext(Results(groups, values))


def assert_quantities(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].tolist() == pytest.approx(value), name
        assert not ours[name].requires_grad


def test_groups_report_their_mean_and_how_well_their_order_is_kept():
    """Three ranked responses, two, and one; sums of log-probs and log-ratios by hand."""
    # Rows: first responses of the prompts 0, 1, 2; second of 0, 1; third of 0.
    context = group_context(
        3,
        policy=[-1.0, -2.0, -5.0, -3.0, -2.0, -2.0],
        reference=[-2.0, -2.0, -4.0, -1.0, -4.0, -2.0],
    )
    assert context.responses.batch.holders == ((0, 1, 2), (0, 1), (0,))
    expected = {
        "logps/mean": [-2.0, -2.0, -5.0],
        # -1 > -3, -1 > -2, -3 < -2; a tie; no pair
        "logps/accuracies": [2 / 3, 0.5, 0.5],
        # log-ratios 1, -2, 0 and 0, 2 and -1
        "rewards/mean": [0.5 * -1 / 3, 0.5, -0.5],
        "rewards/accuracies": [2 / 3, 0.0, 0.5],
    }
    assert_quantities(preference_quantities(context, beta=0.5), expected)


def test_reversed_ranks_turn_the_accuracy_of_groups_into_its_complement():
    """Four, three, two and one: a tie and a prompt without a pair stay at one half."""
    first = [-1.0, -3.0, -1.0, -2.0]
    second, third, fourth = [-2.0, -1.0, -1.0], [-4.0, -2.0], [-3.0]
    context = group_context(4, [*first, *second, *third, *fourth])
    # -1 -2 -4 -3: all kept but the last pair; -3 -1 -2: -1 > -2 alone; a tie; no pair
    expected = {
        "logps/mean": [-2.5, -2.0, -1.0, -2.0],
        "logps/accuracies": [5 / 6, 1 / 3, 0.5, 0.5],
    }
    assert_quantities(preference_quantities(context, beta=0.1), expected)
    # -3 -4 -2 -1, -2 -1 -3, a tie, no pair
    context = group_context(4, [-3, -2, -1, -2, -4, -1, -1, -2, -3, -1])
    expected["logps/accuracies"] = [1 / 6, 2 / 3, 0.5, 0.5]
    assert_quantities(preference_quantities(context, beta=0.1), expected)


def test_prompts_with_one_response_each_have_no_order_to_keep():
    context = group_context(1, policy=[-3.0], reference=[-1.0])
    expected = {"logps/mean": [-3.0], "rewards/mean": [-0.5]}
    assert_quantities(preference_quantities(context, beta=0.25), expected)


def test_names_of_groups_are_announced():
    names = preference_quantities(tiny_context(tiny_groups()), 0.1).keys()
    assert names == {
        f"{kind}/{name}" for kind in ("logps", "rewards") for name in ("mean", "accuracies")
    }
    assert names <= set(quantity_names({"mine": DPOLoss()}))
