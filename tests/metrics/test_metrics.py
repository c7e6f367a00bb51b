"""Means over examples, and what is reported of a batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.metrics import ExampleMeans
from lit_tidpo.metrics.quantities import (
    anchor_quantities,
    importance_quantities,
    outcome_quantities,
    preference_quantities,
    quantity_names,
)
from lit_tidpo.models.reference import Reference
from lit_tidpo.objective import Objective, Outcome
from lit_tidpo.structures import TokenScores
from lit_tidpo.testing import tiny_batch, tiny_policy, tiny_scores

# Means


def test_every_example_weighs_the_same_whatever_its_batch():
    """Batches of 5, 1 and 3: the mean over nine values, not the mean of three means."""
    means = ExampleMeans(["a", "b"])
    values = torch.arange(9.0).square()
    for part in (values[:5], values[5:6], values[6:]):
        means.update({"a": part, "b": -part}, torch.ones(len(part), dtype=torch.bool))
    expected = sum(n * n for n in range(9)) / 9
    assert means.compute()["a"].item() == pytest.approx(expected)
    assert means.compute()["b"].item() == pytest.approx(-expected)


def test_pairs_that_fill_up_a_batch_are_left_out():
    """Also where their values are no numbers."""
    means = ExampleMeans(["a"])
    means.update({"a": torch.tensor([1.0, math.nan, 5.0])}, torch.tensor([True, False, True]))
    means.update({"a": torch.tensor([math.inf])}, torch.tensor([False]))
    assert means.compute()["a"].item() == 3.0


def test_a_counted_value_that_is_no_number_is_not_hidden():
    means = ExampleMeans(["a"])
    means.update({"a": torch.tensor([1.0, math.nan])}, torch.tensor([True, True]))
    assert means.compute()["a"].isnan()


def test_a_quantity_that_is_not_always_there_has_a_count_of_its_own():
    means = ExampleMeans(["a", "sometimes", "never"])
    counted = torch.tensor([True, True])
    means.update({"a": torch.tensor([1.0, 3.0])}, counted)
    means.update({"sometimes": torch.tensor([4.0, 8.0]), "a": torch.tensor([5.0, 7.0])}, counted)
    result = means.compute()
    assert result.keys() == {"a", "sometimes"}
    assert (result["a"].item(), result["sometimes"].item()) == (4.0, 6.0)


def test_after_a_reset_the_means_start_over():
    means, one = ExampleMeans(["a"]), torch.tensor([True])
    means.update({"a": torch.tensor([10.0])}, one)
    means.reset()
    means.update({"a": torch.tensor([2.0])}, one)
    assert means.compute()["a"].item() == 2.0


def test_sums_are_kept_in_fp64():
    """In fp32 a sum of 2^24 would not grow by 1 any more."""
    means, one = ExampleMeans(["a"]), torch.tensor([True])
    for value in [2.0**24, *[1.0] * 4]:
        means.update({"a": torch.tensor([value])}, one)
    assert means.totals.tolist() == [2.0**24 + 4]
    means.bfloat16()
    assert means.totals.dtype == torch.float64


def test_updates_in_inference_mode_and_outside_go_together():
    means, one = ExampleMeans(["a"]), torch.tensor([True])
    with torch.inference_mode():
        means.update({"a": torch.tensor([1.0])}, one)
    means.update({"a": torch.tensor([2.0], requires_grad=True)}, one)
    assert means.compute()["a"].item() == 1.5
    assert not means.totals.requires_grad


def test_g3_states_of_two_processes_add_up():
    """G3: what the ranks' sums and counts give together is the mean over all examples."""
    parts, whole = [ExampleMeans(["a"]), ExampleMeans(["a"])], ExampleMeans(["a"])
    for rank, values in enumerate((torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0]))):
        counted = torch.ones(len(values), dtype=torch.bool)
        parts[rank].update({"a": values}, counted)
        whole.update({"a": values}, counted)
    assert set(parts[0]._reductions) == {"totals", "counts"}
    for name, reduce in parts[0]._reductions.items():
        states = torch.stack([getattr(part, name) for part in parts])
        setattr(parts[0], name, reduce(states))
    assert parts[0].compute()["a"].item() == whole.compute()["a"].item() == 4.0


def test_a_name_that_was_not_announced_is_refused():
    with pytest.raises(ValueError, match="other"):
        ExampleMeans(["a"]).update({"other": torch.ones(1)}, torch.tensor([True]))


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


def test_l11_rewards_weighted_and_not_equal_naive_sums():
    """L11: beta times the sum of log-ratios, without and with token weights."""
    scores, beta = tiny_scores(), 0.3
    ours = preference_quantities(scores, beta)
    expected = {}
    for role in ("chosen", "rejected"):
        part = scores[role]
        ratios = part.policy_logps.detach() - part.reference_logps
        sums = naive_sum(ratios, part.mask)
        expected[f"rewards/{role}"] = [beta * value for value in sums]
        sums = naive_sum(ratios, part.mask, part.weights)
        expected[f"rewards/weighted_{role}"] = [beta * value for value in sums]
        expected[f"logps/{role}"] = naive_sum(part.policy_logps, part.mask)
        expected[f"kl/{role}"] = naive_sum(part.kl, part.mask)
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
    scores = {
        role: dataclasses.replace(part, weights=None, kl=None)
        for role, part in tiny_scores().items()
    }
    assert not any("weighted" in n or "kl" in n for n in preference_quantities(scores, 0.1))


def test_l11_rewards_are_those_of_trl(trl_dpo):
    """L11: under the same names, TRL's trainer logs the same means."""
    policy, reference, batch = tiny_policy(), tiny_policy(seed=1), tiny_batch(pairs=5)
    _, logged, _ = trl_dpo.on_models(policy, reference, batch, beta=0.25)
    objective = Objective(
        GradientImportance(), Weighting(), {"preference": WeightedDPOLoss()}, {}, beta=0.25
    )
    outcome = objective.evaluate(policy, Reference(reference), batch)
    ours = outcome_quantities(outcome, beta=0.25)
    names = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    for name in [*names, "logps/chosen", "logps/rejected"]:
        assert ours[name].mean().item() == pytest.approx(logged[name], abs=1e-5), name
    assert 0 < logged["rewards/accuracies"] < 1  # pairs of both kinds


@pytest.mark.parametrize("seed", range(5))
def test_l10_swapping_chosen_and_rejected_turns_accuracy_into_its_complement(seed):
    """L10: and negates every margin; a tie is one half on both sides."""
    scores = tiny_scores(pairs=6, seed=seed)
    tied = {role: dataclasses.replace(part) for role, part in scores.items()}
    for part in tied.values():
        part.policy_logps = part.policy_logps.detach().clone()
        part.reference_logps = part.reference_logps.clone()
        part.policy_logps[0] = part.reference_logps[0] = 0.0
    swapped = {**tied, "chosen": tied["rejected"], "rejected": tied["chosen"]}
    first, second = preference_quantities(tied, 0.1), preference_quantities(swapped, 0.1)
    for name in ("rewards/margins", "rewards/weighted_margins"):
        assert torch.equal(first[name], -second[name])
    for name in ("rewards/accuracies", "rewards/weighted_accuracies", "logps/accuracies"):
        assert torch.equal(first[name], 1 - second[name])
        assert first[name][0] == 0.5
        assert set(first[name][1:].tolist()) <= {0.0, 1.0}


# Importance and anchors


def spread_of(weights, raw_scores, mask):
    zeros = torch.zeros(mask.shape)
    tokens = TokenScores(mask, zeros, weights=weights, raw_scores=raw_scores)
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
def test_w7_the_share_of_the_last_token_is_logged(excluded):
    """W7: of the raw scores, by hand from the gradient estimator's own."""
    objective = Objective(
        GradientImportance(exclude_target=excluded),
        Weighting(),
        {"preference": WeightedDPOLoss()},
        {},
        beta=0.1,
    )
    batch = tiny_batch()
    outcome = objective.evaluate(tiny_policy(), Reference(tiny_policy(seed=1)), batch)
    logged = outcome_quantities(outcome, beta=0.1)
    for role in ("chosen", "rejected"):
        shares = []
        for row, mask in zip(
            outcome.scores[role].raw_scores, outcome.scores[role].mask, strict=True
        ):
            kept = row[mask].tolist()
            shares.append(kept[-1] / sum(kept))
        assert logged[f"importance/{role}_last_token_share"].tolist() == pytest.approx(shares)
        assert (min(shares) == 0) == excluded


def test_length_of_anchors_and_empty_ones_by_hand():
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    values = anchor_quantities(TokenScores(mask, torch.zeros(2, 4)))
    assert values["anchor/length"].tolist() == [3.0, 1.0]
    assert values["anchor/empty"].tolist() == [0.0, 1.0]


def test_every_reported_name_is_announced():
    scores = tiny_scores()
    for role in ("chosen", "rejected"):
        scores[role].raw_scores = scores[role].weights
    losses = {"mine": DPOLoss().loss(scores, 0.1)}
    outcome = Outcome(losses["mine"], losses, scores, None)
    reported = outcome_quantities(outcome, beta=0.1)
    assert reported.keys() == set(quantity_names(["mine"]))
    assert all(value.shape == (3,) and not value.requires_grad for value in reported.values())
