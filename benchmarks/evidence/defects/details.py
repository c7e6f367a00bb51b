"""The costly or smaller parts of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from benchmarks.evidence.defects import bias, cost, finding, stability
from benchmarks.evidence.defects.detectors import trained_detector
from benchmarks.evidence.defects.estimators import estimators, integrated_gradients
from benchmarks.evidence.defects.estimators import mitigations as variants
from benchmarks.evidence.defects.measures import Interval
from benchmarks.evidence.defects.rows import as_batch, paraphrased
from benchmarks.evidence.defects.scoring import responses, score_rows
from benchmarks.evidence.defects.subject import START, Subject
from lit_tidpo.assets.build.detector import decisive_tokens
from lit_tidpo.models.policy import PolicyConfig, build_policy


def contrast(subject: Subject, best: Sequence[float]) -> dict[str, Any]:
    """Tokens that differ from the chosen response: the answer itself, as a bound."""
    scores = []
    for row in subject.rows:
        batch = as_batch([row], ("chosen", "rejected"))
        marked = decisive_tokens(batch)[1].float()
        scores += responses(marked.unsqueeze(0), as_batch([row]))
    return finding.found([scores], subject.rows, best)


def mitigations(subject: Subject, best: Sequence[float]) -> dict[str, Any]:
    """Biases of the gradient estimators and what each option does to them."""
    counts = bias.token_counts(subject.others("train"))
    modules = [row.module for row in subject.detail]
    result: dict[str, Any] = {}
    for state, policy in {"untrained": subject.start, "trained": subject.policies[0]}.items():
        made = variants() | integrated_gradients(subject.extent.integration_steps)
        scores = score_rows(policy, subject.start, subject.detail, made)
        if state == "untrained":
            scores |= {"detector": subject.detected(subject.detectors[0], subject.detail)}
        areas = {n: finding.row_aurocs(values, subject.detail) for n, values in scores.items()}
        result[state] = {
            name: {
                **finding.found([values], subject.detail, best[: len(subject.detail)]),
                "gain_over_plain": finding.gain(areas[name], areas[_plain_one(name)], modules),
                "bias": _plain(bias.biases(values, subject.detail, policy, counts)),
            }
            for name, values in scores.items()
        }
    subject.tell("mitigations are measured")
    return result


def _plain_one(name: str) -> str:
    """What a mitigation changes: ``gradient TARGET`` of ``gradient TARGET OPTION``."""
    return " ".join(name.split()[:2])


def stabilities(subject: Subject, runs: Mapping[str, Sequence[Sequence[Tensor]]]) -> dict[str, Any]:
    """Rank correlations over seeds, and between texts that differ in white space."""
    kept = len(subject.detail)
    over_seeds = stability.over_seeds(
        {name: [scores[:kept] for scores in seeds] for name, seeds in runs.items()},
        subject.detail,
    )
    both = paraphrased(subject.detail)
    sides = [
        subject.scores(subject.policies[0], [pair[side] for pair in both], 0) for side in (0, 1)
    ]
    over_space = stability.over_white_space(sides[0], sides[1], both)
    subject.tell("stability is measured")
    return {"seeds": _plain(over_seeds), "white_space": _plain(over_space)}


def estimator_costs(subject: Subject) -> dict[str, Any]:
    """Cost of each estimator beyond plain DPO's forward."""
    # In training, parameters take gradients.
    policy = build_policy(PolicyConfig(path=START, attn_implementation="eager"))
    made = estimators(subject.detectors[0], 0)
    made |= integrated_gradients(subject.extent.integration_steps)
    pairs = subject.rows[: subject.extent.cost_pairs]
    return cost.costs(policy, subject.start, pairs, made, repeats=3)


def unseen_defects(subject: Subject, best: Sequence[float]) -> dict[str, Any]:
    """Each kind of defect by a detector that was trained without it."""
    result: dict[str, Any] = {}
    for kind in sorted({row.fields["defect"] for row in subject.rows}):
        places = [i for i, row in enumerate(subject.rows) if row.fields["defect"] == kind]
        rows = [subject.rows[place] for place in places]
        scores = subject.detected(trained_detector(subject.folder, 0, without=kind), rows)
        result[kind] = finding.found([scores], rows, [best[place] for place in places])
        subject.tell(f"a detector without {kind} is measured")
    return result


def _plain(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(interval) for name, interval in intervals.items()}
