"""Scores that follow from what models say of each token, or from the token itself."""

from __future__ import annotations

import json
import math

import pyarrow
import pyarrow.parquet
import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.importance.confidence_importance import ConfidenceImportance
from lit_tidpo.importance.contrast_importance import ContrastImportance
from lit_tidpo.importance.entropy_importance import EntropyImportance
from lit_tidpo.importance.per_role_importance import PerRoleImportance
from lit_tidpo.importance.position_decay_importance import PositionDecayImportance
from lit_tidpo.importance.rarity_importance import RarityImportance
from lit_tidpo.importance.surprisal_importance import SurprisalImportance
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel, InstructedModel
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_policy


def responses(batch):
    """Row, first and last of each response."""
    ends = zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    return [(row, start, end) for row, (start, end) in enumerate(ends)]


def log_probs(model, batch, row, end):
    """Of a row alone and unpadded, from the model's own logits, in float64, ``[T, V]``."""
    logits = model(batch.input_ids[row : row + 1, :end]).logits[0].detach()
    return logits.double().log_softmax(-1)


def logps(model, batch, row, start, end):
    found = log_probs(model, batch, row, end)
    return [found[t - 1, batch.input_ids[row, t]].item() for t in range(start, end)]


@pytest.mark.parametrize("attributed", ["policy", "reference"])
def test_surprisal_and_entropy_are_those_of_the_models_own_logits(attributed):
    models, batch = {"policy": tiny_policy(), "reference": tiny_policy(seed=1)}, tiny_batch()
    surprisal, entropy = SurprisalImportance(attributed), EntropyImportance(attributed)
    results = run(models["policy"], batch, surprisal.needs | entropy.needs, models["reference"])
    for row, start, end in responses(batch):
        model = models[attributed]
        expected = [-logp for logp in logps(model, batch, row, start, end)]
        ours = surprisal.scores(results)[row, start:end].tolist()
        assert ours == pytest.approx(expected, abs=1e-4)
        each = log_probs(model, batch, row, end)[start - 1 : end - 1].tolist()
        expected = [-sum(math.exp(p) * p for p in position) for position in each]
        ours = entropy.scores(results)[row, start:end].tolist()
        assert ours == pytest.approx(expected, abs=1e-4)


def test_log_probs_rounded_above_zero_score_zero():
    results = Results(tiny_batch(), {"reference.logps": torch.tensor([[1e-7, -2.0]])})
    assert SurprisalImportance().scores(results).tolist() == [[0.0, 2.0]]


def test_confidence_keeps_what_is_less_likely_than_the_mean():
    policy, batch = tiny_policy(), tiny_batch()
    estimator = ConfidenceImportance()
    ours = estimator.scores(run(policy, batch, estimator.needs))
    kept = 0
    for row, start, end in responses(batch):
        likely = [math.exp(logp) for logp in logps(policy, batch, row, start, end)]
        mean = sum(likely) / len(likely)
        assert ours[row, start:end].tolist() == [float(each < mean) for each in likely]
        kept += sum(each < mean for each in likely)
    assert 0 < kept < int(batch.response_mask.sum())


def test_contrast_is_tis_dpos_weight_for_both_roles():
    """exp(mu clip(log p - log q, -0.5, 1.5)) with mu = 1 and -1, from the models' own logits."""
    good, bad, batch = tiny_policy(seed=1), tiny_policy(seed=2), tiny_batch()
    estimator = PerRoleImportance(ContrastImportance(), ContrastImportance(slope=-1.0))
    others = {"positive": FrozenModel(good), "negative": FrozenModel(bad)}
    (results,) = Models(tiny_policy(), others).run([(batch, estimator.needs)])
    ours = estimator.scores(results)
    clipped = set()
    for row, start, end in responses(batch):
        sign = 1 if row < batch.size else -1
        ratios = [
            p - q
            for p, q in zip(
                logps(good, batch, row, start, end),
                logps(bad, batch, row, start, end),
                strict=True,
            )
        ]
        clipped |= {ratio < -0.5 or ratio > 1.5 for ratio in ratios}
        expected = [math.exp(sign * min(max(ratio, -0.5), 1.5)) for ratio in ratios]
        assert ours[row, start:end].tolist() == pytest.approx(expected, rel=1e-4)
    assert clipped == {False, True}


def test_contrast_of_the_policy_under_two_prompts():
    """Against two plain forwards of the policy, with the instruction before the prompt."""
    policy, batch = tiny_policy(), tiny_batch()
    instructions = {"positive": [5, 6], "negative": [9]}
    others = {name: InstructedModel(ids) for name, ids in instructions.items()}
    estimator = ContrastImportance(slope=0.5, low=-9.0, high=9.0)
    (results,) = Models(policy, others).run([(batch, estimator.needs)])
    ours = estimator.scores(results)
    for row, start, end in responses(batch):
        found = []
        for ids in instructions.values():
            whole = torch.tensor([ids + batch.input_ids[row, :end].tolist()])
            each = policy(whole).logits[0].double().log_softmax(-1)
            shift = len(ids)
            found.append(
                [each[t + shift - 1, whole[0, t + shift]].item() for t in range(start, end)]
            )
        expected = [math.exp(0.5 * (p - q)) for p, q in zip(*found, strict=True)]
        assert ours[row, start:end].tolist() == pytest.approx(expected, rel=1e-4)


def test_position_decay_by_hand():
    batch = tiny_batch()
    scores = PositionDecayImportance(0.5).scores(Results(batch, {}))
    for row, start, end in responses(batch):
        assert scores[row, start : start + 3].tolist() == [1.0, 0.5, 0.25]
        assert scores[row, :start].sum() == scores[row, end:].sum() == 0


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rarity_by_hand(tmp_path, suffix):
    """Token 3 is 1 of 4, token 4 is 3 of 4; others are not in the file."""
    file = tmp_path / f"tokens{suffix}"
    lists = [[3, 4], [4, 4]]
    if suffix == ".jsonl":
        file.write_text(
            "".join(json.dumps({"token_ids": ids, "role": "x"}) + "\n" for ids in lists)
        )
    else:
        pyarrow.parquet.write_table(pyarrow.table({"token_ids": lists}), file)
    batch = tiny_batch()
    batch.input_ids[0, :4] = torch.tensor([3, 4, 2, 47])
    scores = RarityImportance(str(file), smoothing=0.25).scores(Results(batch, {}))
    assert scores[0, :4].tolist() == [0.5, 0.25, 1.0, 1.0]


def test_files_that_count_nothing_are_refused(tmp_path):
    (tmp_path / "no.jsonl").write_text('{"tokens": [1]}\n')
    (tmp_path / "bad.jsonl").write_text("nothing of the kind")
    with pytest.raises(InputError, match=r"has the columns \['tokens'\]: expected \['token_ids'\]"):
        RarityImportance(str(tmp_path / "no.jsonl"))
    with pytest.raises(InputError, match=r"bad\.jsonl' cannot be read"):
        RarityImportance(str(tmp_path / "bad.jsonl"))
    with pytest.raises(InputError, match=r"expected a \.jsonl or \.parquet file"):
        RarityImportance(str(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastImportance("a", "a"), "expected two models"),
        (lambda: ContrastImportance(slope=0.0), "slope=0.0: expected a finite number"),
        (lambda: ContrastImportance(low=2.0), "low=2.0 and high=1.5: expected finite numbers"),
        (lambda: PositionDecayImportance(0.0), "gamma=0.0: expected a finite number above 0"),
        (lambda: RarityImportance("tokens.jsonl", smoothing=-1.0), "smoothing=-1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
