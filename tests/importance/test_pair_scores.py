"""Scores that compare the responses of a prompt."""

from __future__ import annotations

import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.functional import unbalanced_transport
from lit_tidpo.importance.difference_importance import DifferenceImportance
from lit_tidpo.importance.optimal_transport_importance import OptimalTransportImportance
from lit_tidpo.structures import ResponseBatch, Results
from lit_tidpo.testing import check_importance_estimator, tiny_batch, tiny_groups, tiny_policy


def pair(chosen, rejected, prompt=2):
    """A pair of responses after a prompt of so many tokens."""
    rows = [[9] * prompt + ids for ids in (chosen, rejected)]
    width = max(map(len, rows))
    return ResponseBatch(
        input_ids=torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
        prompt_lengths=torch.tensor([prompt, prompt]),
        lengths=torch.tensor([len(row) for row in rows]),
        roles=("chosen", "rejected"),
        index=torch.tensor([0]),
        counted=torch.tensor([True]),
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([3, 4, 5, 2], [3, 7, 5, 2], ([0, 1, 0, 0], [0, 1, 0, 0])),  # another token
        ([3, 4, 2], [3, 4, 5, 6, 2], ([0, 0, 0], [0, 0, 1, 1, 0])),  # put in
        ([3, 4], [5, 6, 7], ([1, 1], [1, 1, 1])),  # nothing in common
        ([3, 4], [3, 4], ([0, 0], [0, 0])),
    ],
)
def test_the_edit_by_hand(chosen, rejected, expected):
    batch = pair(chosen, rejected)
    scores = DifferenceImportance(background=0.0).scores(Results(batch, {}))
    for row, wanted in enumerate(expected):
        assert scores[row][batch.response_mask[row]].tolist() == wanted
    background = DifferenceImportance(background=0.25).scores(Results(batch, {}))
    mask = batch.response_mask
    assert torch.equal(background[mask], scores[mask].clamp(min=0.25))


def longest_common_subsequence(first, second):
    """Its length, by the textbook's table."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            table[i][j] = (
                table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
            )
    return table[-1][-1]


def test_what_stays_is_a_common_subsequence_of_both():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        chosen = torch.randint(3, 8, (12,), generator=generator).tolist()
        rejected = torch.randint(3, 8, (9,), generator=generator).tolist()
        batch = pair(chosen, rejected)
        scores = DifferenceImportance(0.0).scores(Results(batch, {}))
        kept = [
            [token for token, score in zip(ids, row[own].tolist(), strict=True) if score == 0]
            for ids, row, own in zip((chosen, rejected), scores, batch.response_mask, strict=True)
        ]
        assert kept[0] == kept[1]
        assert 0 < len(kept[0]) <= longest_common_subsequence(chosen, rejected)


def test_among_several_responses_the_mean_is_taken_and_one_alone_has_ones():
    groups = tiny_groups()
    scores = DifferenceImportance(0.0).scores(Results(groups, {}))
    owners = groups.of_rows(torch.arange(groups.size)).tolist()
    single = [row for row, owner in enumerate(owners) if owners.count(owner) == 1]
    assert single
    for row in single:
        assert bool((scores[row][groups.response_mask[row]] == 1).all())
    last = scores[0, groups.lengths[0] - 1]  # the end, which all four share
    assert last == 0


def transport_by_linear_programming(cost):
    """The plan of least cost between sets of as many tokens, each of which moves its unit."""
    from scipy.optimize import linprog

    rows, columns = cost.shape
    rules = torch.zeros(rows + columns, rows, columns)
    for row in range(rows):
        rules[row, row] = 1
    for column in range(columns):
        rules[rows + column, :, column] = 1
    ones = torch.ones(rows + columns)
    found = linprog(cost.flatten().numpy(), A_eq=rules.flatten(1).numpy(), b_eq=ones.numpy())
    return torch.tensor(found.x).view(rows, columns)


def test_with_little_smoothing_tokens_go_where_the_linear_program_sends_them():
    generator = torch.Generator().manual_seed(0)
    for size in (2, 4, 6):
        cost = torch.rand(size, size, generator=generator, dtype=torch.float64)
        cost[range(size), torch.randperm(size, generator=generator)] -= 0.7  # no near ties
        plan = unbalanced_transport(cost - cost.min(), smoothing=0.01, mass_penalty=2.0)
        assignment = plan / plan.sum(1, keepdim=True)
        expected = transport_by_linear_programming(cost)
        torch.testing.assert_close(assignment, expected, atol=0.05, rtol=0)


def divergence(masses):
    return (torch.special.xlogy(masses, masses) - masses + 1).sum()


def test_the_plan_is_the_minimum_of_its_objective():
    """SciPy's BFGS over the logarithms of the plan, in float64."""
    from scipy.optimize import minimize

    cost = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def objective(logarithms):
        plan = torch.tensor(logarithms, requires_grad=True)
        masses = plan.view(3, 5).exp()
        value = (masses * cost).sum() + 0.1 * divergence(masses)
        value = value + 0.2 * (divergence(masses.sum(0)) + divergence(masses.sum(1)))
        value.backward()
        return value.item(), plan.grad.numpy()

    found = minimize(objective, torch.zeros(15).double().numpy(), jac=True, tol=1e-8)
    plan = unbalanced_transport(cost, smoothing=0.1, mass_penalty=0.2)
    torch.testing.assert_close(plan, torch.tensor(found.x).exp().view(3, 5), atol=1e-5, rtol=1e-4)


def test_scores_are_the_masses_of_the_plan_between_the_models_hidden_states():
    policy, batch, estimator = tiny_policy(), tiny_batch(), OptimalTransportImportance()
    scores = estimator.scores(run(policy, batch, estimator.needs))
    with torch.no_grad():
        states = policy(
            batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
    predicting = [
        states[row, start - 1 : end - 1].double()
        for row, (start, end) in enumerate(
            zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
        )
    ]
    for prompt in range(batch.size):
        chosen, rejected = predicting[prompt], predicting[prompt + batch.size]
        cost = torch.tensor([[(a - b).norm().item() for b in rejected] for a in chosen])
        plan = unbalanced_transport((cost / cost.max()).double(), 0.1, 0.2)
        shorter = min(len(chosen), len(rejected))
        for row, masses in ((prompt, plan.sum(1)), (prompt + batch.size, plan.sum(0))):
            ours = scores[row][batch.response_mask[row]].double()
            torch.testing.assert_close(ours, masses * shorter / plan.sum(), atol=1e-4, rtol=1e-3)
            assert ours.sum().item() == pytest.approx(shorter, rel=1e-4)


def test_like_tokens_carry_more():
    """By construction: the second token of the one is far from all of the other."""
    batch = pair([3, 4], [3, 3])
    hidden = torch.zeros(2, 4, 2)
    hidden[0, 3] = torch.tensor([5.0, 0.0])
    scores = OptimalTransportImportance().scores(Results(batch, {"policy.hidden": hidden}))
    assert scores[0, 2] > 2 * scores[0, 3]
    assert scores[1, 2] == pytest.approx(scores[1, 3].item())


@pytest.mark.parametrize("make", [DifferenceImportance, OptimalTransportImportance])
def test_an_estimator_of_groups_scores_a_response_alone_and_the_longest_groups(make):
    estimator = make()
    groups = tiny_groups()
    results = run(tiny_policy(), groups, estimator.needs)
    scores = estimator.scores(results)
    assert bool(scores[groups.response_mask].isfinite().all())
    check_importance_estimator(estimator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DifferenceImportance(1.5), "background=1.5"),
        (lambda: OptimalTransportImportance(smoothing=0.0), "smoothing=0.0"),
        (lambda: OptimalTransportImportance(mass_penalty=-1.0), "mass_penalty=-1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
