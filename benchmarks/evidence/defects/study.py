"""The whole study, part by part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.evidence.defects import bias, details, finding, positions
from benchmarks.evidence.defects.faithfulness import faithfulness
from benchmarks.evidence.defects.scoring import weigh_rows
from benchmarks.evidence.defects.stability import agreement
from benchmarks.evidence.defects.subject import Subject
from lit_tidpo.importance.weighting import Weighting

WEIGHTINGS = {
    "default": Weighting(),
    "no_prior": Weighting(mix=1.0),
    "temper_0.5": Weighting(temper=0.5),
    "clip_4": Weighting(clip=4.0),
    "sigma_divisor_8": Weighting(sigma_divisor=8.0),
    "softmax": Weighting(prior="softmax"),
}


def results(subject: Subject) -> dict[str, Any]:
    """Everything, as JSON holds it."""
    begun = time.perf_counter()
    runs = _runs(subject)
    subject.tell("rows are scored")
    position = _position_baselines(subject)
    best = position.pop("areas")
    found = {
        state: {name: finding.found(scores, subject.rows, best) for name, scores in by_name.items()}
        for state, by_name in runs.items()
    }
    subject.tell("areas are computed")
    first = {name: seeds[0][: len(subject.detail)] for name, seeds in runs["trained"].items()}
    result: dict[str, Any] = {
        "settings": _settings(subject),
        "position_only": position,
        "finding": found,
        "weights": _weights(subject, runs["trained"], best),
        "contrast": details.contrast(subject, best),
        "mitigations": details.mitigations(subject, best),
        "faithfulness": faithfulness(subject.policies[0], subject.start, subject.detail, first),
        "stability": details.stabilities(subject, runs["trained"]),
        "agreement": agreement(first),
        "cost": details.estimator_costs(subject),
    }
    if subject.extent.detectors:
        result["unseen_defects"] = details.unseen_defects(subject, best)
    result["estimators"] = _summary(result)
    result["minutes"] = (time.perf_counter() - begun) / 60
    return result


def _settings(subject: Subject) -> dict[str, Any]:
    return {
        **vars(subject.extent),
        "split": "test",
        "rows_measured": len(subject.rows),
        "modules": len({row.module for row in subject.rows}),
        "tokens": bias.mean_length(subject.rows),
        "defect_tokens": sum(int(row.marked.sum()) for row in subject.rows) / len(subject.rows),
        "interval": "95 %, bootstrap over modules",
    }


def _runs(subject: Subject) -> dict[str, dict[str, list[list[Tensor]]]]:
    """Scores of each seed by state of the policy and estimator."""
    seeds = range(subject.extent.seeds)
    untrained = {
        name: [scores]
        for name, scores in subject.scores(subject.start, subject.rows, 0).items()
        if "log_ratio" not in name  # a policy that has not moved has no log-ratio
    }
    runs = [subject.scores(subject.policies[seed], subject.rows, seed) for seed in seeds]
    trained = {name: [scores[name] for scores in runs] for name in runs[0]}
    # What does not look at the policy has the seeds of its own.
    untrained |= {name: trained[name] for name in ("random", "detector")}
    return {"untrained": untrained, "trained": trained}


def _position_baselines(subject: Subject) -> dict[str, Any]:
    kind, profile = positions.learnt_profile(subject.others("validation"))
    profiles = {
        "gaussian": positions.gaussian,
        "last_token": positions.last_token,
        "learnt": profile,
    }
    scores = {
        name: [values(len(row.marked)) for row in subject.rows] for name, values in profiles.items()
    }
    areas = {name: finding.row_aurocs(values, subject.rows) for name, values in scores.items()}
    best = max(areas, key=lambda name: sum(areas[name]))
    found = {
        name: finding.found([values], subject.rows, areas[best]) for name, values in scores.items()
    }
    return {**found, "learnt_kind": kind, "best": best, "areas": areas[best]}


def _weights(
    subject: Subject, runs: Mapping[str, Sequence[Sequence[Tensor]]], best: Sequence[float]
) -> dict[str, Any]:
    """The final weights of each way to mix."""
    return {
        way: {
            name: finding.found(
                [weigh_rows(scores, subject.rows, weighting) for scores in seeds],
                subject.rows,
                best,
            )
            for name, seeds in runs.items()
        }
        for way, weighting in WEIGHTINGS.items()
    }


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """For each estimator its area, precision and cost, on trained policies."""
    return {
        name: {
            "auroc": found["auroc"],
            "precision_at_k": found["precision_at_k"],
            "precision_at_5": found["precision_at_5"],
            "gain_over_position": found["gain_over_position"],
            "seeds": found["auroc_of_seeds"]["seeds"],
            "cost": result["cost"][name],
        }
        for name, found in result["finding"]["trained"].items()
    }
