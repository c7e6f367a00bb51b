"""Rows, baselines and comparisons of the study on a few pairs of the shipped data."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks.evidence.defects import measures
from benchmarks.evidence.defects.scoring import (
    costs,
    frozen_policy,
    held_out_rows,
    made,
    paraphrased,
    score_rows,
    weigh_rows,
)
from benchmarks.evidence.grid import read_yaml
from lit_tidpo.importance.difference_importance import DifferenceImportance
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.gradient_log_ratio_importance import GradientLogRatioImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.supplied_importance import SuppliedImportance
from lit_tidpo.importance.surprisal_importance import SurprisalImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def rows():
    return held_out_rows("validation", 12)


@pytest.fixture(scope="module")
def policy():
    return frozen_policy("builtin:policy")


def test_marked_tokens_hold_the_defect_and_the_others_do_not(rows):
    tokenizer = load_tokenizer("builtin:policy")
    for row in rows:
        text, (first, last) = row.fields["rejected"], row.fields["rejected_span"]
        assert tokenizer.decode(row.rejected[:-1]) == text
        covered = [place for place, marked in zip(row.places, row.marked, strict=True) if marked]
        assert covered[0][0] <= first < covered[0][1]
        # The white space before a token is not counted as its text.
        assert covered[-1][0] < last
        assert covered[-1][1] >= first + len(text[first:last].rstrip())
        assert int(row.marked.sum()) == len(covered) < len(row.rejected)
        assert row.places[-1] == (len(text), len(text))
        assert row.module == row.fields["module"].split(".")[0]


def test_no_module_is_both_learnt_from_and_measured():
    modules = [
        {row.module for row in held_out_rows(split, 200)} for split in ("validation", "test")
    ]
    assert not modules[0] & modules[1]


def test_the_learnt_baseline_has_the_rate_of_defects_of_each_place_from_the_end(rows):
    """By hand for one row: all places before the last 39 count as one."""
    row = rows[0]
    learnt = measures.by_position([row], [row])["learnt"][0]
    assert bool((learnt[row.marked] > 0).all())
    torch.testing.assert_close(learnt[-39:], row.marked[-39:].float())
    torch.testing.assert_close(
        learnt[:-39], row.marked[:-39].float().mean().expand(len(learnt) - 39)
    )


def test_position_baselines_know_nothing_but_the_length(rows):
    baselines = measures.by_position(rows, rows)
    for place, row in enumerate(rows):
        gaussian = baselines["gaussian"][place]
        torch.testing.assert_close(gaussian, gaussian.flip(0))
        assert int(gaussian.argmax()) in {(len(gaussian) - 1) // 2, len(gaussian) // 2}
        assert baselines["last_token"][place].tolist() == list(range(len(row.rejected)))


def test_other_white_space_leaves_the_rest_of_the_text_and_scores_that_follow_it(rows):
    """Scores made from the characters of a token are found again in the other version."""

    def lengths(row):
        text = row.fields["rejected"]
        return torch.tensor(
            [float(len(text[start:end].strip() or "x")) for start, end in row.places]
        )

    both = paraphrased(rows)
    assert len(both) > 6
    for row, other in both:
        assert row.fields["rejected"].split() == other.fields["rejected"].split()
        assert row.rejected != other.rejected
        first, second = measures.aligned(row, torch.ones(len(row.places)), other, lengths(other))
        assert len(first) == len(second) <= len(row.places)
        same, again = measures.aligned(row, lengths(row), row, lengths(row))
        torch.testing.assert_close(same, again)


def test_scores_are_those_of_the_models_own_logits(rows, policy):
    ours = score_rows(policy, policy, rows[:3], {"s": SurprisalImportance("reference")})["s"]
    for row, scores in zip(rows, ours, strict=False):
        ids = torch.tensor([row.ids["prompt_ids"] + row.rejected])
        log_probs = policy(ids).logits[0].log_softmax(-1)
        start = len(row.ids["prompt_ids"])
        expected = [-log_probs[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])]
        assert scores.tolist() == pytest.approx(expected, abs=1e-4)


def test_weights_have_mean_one_and_keep_their_row(rows):
    scores = [torch.rand(len(row.rejected)) for row in rows]
    no_prior = HybridImportance(SuppliedImportance(), mix=1.0)
    for values, weights in zip(scores, weigh_rows(scores, rows, no_prior), strict=True):
        torch.testing.assert_close(weights, values / values.mean())


def test_faithfulness_equals_a_forward_of_the_changed_embeddings(rows, policy):
    """The target after deletion, from one plain forward without a cache."""
    row = rows[0]
    kept = torch.rand(3, len(row.rejected)) < 0.5
    ours = measures.targets(policy, policy, row, kept)
    table, ids = (
        policy.get_input_embeddings().weight,
        torch.tensor(row.ids["prompt_ids"] + row.rejected),
    )
    for pattern in range(3):
        embeddings = table[ids].clone()
        for place in range(len(row.rejected)):
            if not kept[pattern, place]:
                embeddings[len(row.ids["prompt_ids"]) + place] = table.mean(0)
        log_probs = policy(inputs_embeds=embeddings[None]).logits[0].log_softmax(-1)
        expected = sum(
            log_probs[t - 1, ids[t]].item() for t in range(len(row.ids["prompt_ids"]), len(ids))
        )
        assert ours["response_logp"][pattern].item() == pytest.approx(expected, rel=1e-4)
    assert ours["log_ratio"].abs().max() == 0


def test_faithful_scores_beat_random_order(rows, policy):
    """Taking away what was just found to matter most, alone, must change more than chance."""
    chosen, gains = sorted(rows, key=lambda row: len(row.rejected))[:2], []
    for row in chosen:
        kept = ~torch.eye(len(row.rejected), dtype=torch.bool)
        whole = torch.ones(1, len(row.rejected), dtype=torch.bool)
        logp = measures.targets(policy, policy, row, torch.cat([whole, kept]))
        gains.append((logp["response_logp"][1:] - logp["response_logp"][0]).abs())
    found = measures.faithfulness(
        policy, policy, chosen, {"best": gains, "worst": [-gain for gain in gains]}
    )
    assert found["best"]["deletion response_logp"]["mean"] > 0
    assert found["worst"]["deletion response_logp"]["mean"] < 0
    assert found["best"]["insertion response_logp"]["mean"] > 0


def test_biases_by_construction(rows, policy):
    """Scores that rise with the place, and whose last one is half of the row."""
    counts = Counter(token for row in rows for token in row.rejected)
    scores = [torch.arange(1.0, len(row.rejected) + 1) for row in rows]
    for values in scores:
        values[-1] = values[:-1].sum()
    found = measures.biases(scores, rows, policy, counts)
    assert found["position"]["mean"] == pytest.approx(1.0)
    mean_half = sum(len(values) for values in scores) / len(scores) / 2
    assert found["last_share"]["mean"] == pytest.approx(mean_half)
    assert found["length"]["mean"] == pytest.approx(1.0)
    frequent = [torch.tensor([float(counts[token]) for token in row.rejected]) for row in rows]
    assert measures.biases(frequent, rows, policy, counts)["frequency"]["mean"] == pytest.approx(
        1.0
    )
    norms = policy.get_input_embeddings().weight.norm(dim=-1)
    by_norm = [-norms[torch.tensor(row.rejected)] for row in rows]
    found = measures.biases(by_norm, rows, policy, counts)
    assert found["embedding_norm"]["mean"] == pytest.approx(-1.0)


def test_operations_are_counted_beyond_the_plain_forward(rows, policy):
    """A gradient for the embeddings costs at least another forward; uniform scores nothing."""
    options = {"gradient": GradientImportance(), "uniform": UniformImportance()}
    found = costs(policy, rows[:2], options, repeats=1)
    sides = [row.ids[f"{side}_ids"] for row in rows[:2] for side in ("chosen", "rejected")]
    tokens = sum(map(len, sides)) + 2 * sum(len(row.ids["prompt_ids"]) for row in rows[:2])
    layers = 4 * (4 * 256 * 256 + 3 * 256 * 688)
    assert found["plain"]["gflop"] > 2 * 2 * layers * tokens / 2 / 1e9  # two models
    assert found["uniform"]["gflop"] == 0
    assert found["gradient"]["gflop"] > 0.4 * found["plain"]["gflop"]


def test_agreement_is_symmetric_and_one_with_itself():
    scores = {"a": [torch.arange(5.0)], "b": [torch.arange(5.0).flip(0)]}
    assert measures.agreement(scores) == {
        "a": {"a": 1.0, "b": pytest.approx(-1.0)},
        "b": {"b": 1.0, "a": pytest.approx(-1.0)},
    }


def test_who_sees_both_responses_marks_the_rejected_ones_own_tokens(rows, policy):
    both = {"d": DifferenceImportance(0.0), "s": SurprisalImportance("reference")}
    ours = score_rows(policy, policy, rows[:3], both)
    alone = score_rows(policy, policy, rows[:3], {"s": both["s"]})
    for row, scores in zip(rows, ours["d"], strict=False):
        assert bool(scores[row.marked].any())
        assert float(scores.mean()) < 0.5
    for first, second in zip(ours["s"], alone["s"], strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_the_study_names_what_can_be_built(tmp_path):
    """Every class and option of the configuration; a mitigation's plain one is there, too."""
    study = read_yaml("configs/evidence/defects.yaml")
    detector = {"path": "builtin:detector"}
    (tmp_path / "tokens.jsonl").write_text('{"token_ids": [1]}')
    rarity = {"path": str(tmp_path / "tokens.jsonl")}
    estimators = made(study["estimators"], random={"seed": 3}, detector=detector, rarity=rarity)
    assert estimators["random"].seed == 3
    assert isinstance(estimators["gradient log_ratio"], GradientLogRatioImportance)
    options = made(study["mitigations"])
    assert {" ".join(name.split()[:2]) for name in options} <= options.keys()
    no_prior = made(study["weightings"])["no_prior"]
    assert isinstance(no_prior, HybridImportance)
    assert isinstance(no_prior.estimator, SuppliedImportance)
    assert no_prior.mix == 1
    assert {row.fields["defect"] for row in held_out_rows("test", 400)} == {*study["unseen"]}


def test_correlations_over_seeds_and_white_space_are_those_of_the_rows(rows):
    scores = [torch.rand(len(row.rejected)) for row in rows]
    same = measures.over_seeds({"a": [scores, scores, scores]}, rows)["a"]
    assert same == {"mean": pytest.approx(1.0), "interval": pytest.approx([1.0, 1.0])}
    both = paraphrased(rows)
    lengths = [torch.arange(float(len(row.rejected))) for row, _ in both]
    others = [torch.arange(float(len(row.rejected))) for _, row in both]
    sides = tuple(zip(*both, strict=True))
    found = measures.over_white_space((sides[0], {"a": lengths}), (sides[1], {"a": others}))
    assert found["a"]["mean"] > 0.99  # later tokens hold later text
