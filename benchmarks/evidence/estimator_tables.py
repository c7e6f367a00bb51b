"""How well the estimators find the planted defects, as sections of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BIASES = {
    "position": "position",
    "frequency": "frequency",
    "embedding_norm": "embedding norm",
    "last_share": "share of the last token",
    "length": "length",
}
TARGETS = ("response_logp", "log_ratio", "max_logit")


def merged(evidence: dict[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """Add the study of the estimators to the evidence.

    Args:
        evidence: Content of ``evidence.json`` without it.
        study: What ``python -m benchmarks.evidence.defects`` wrote.

    Returns:
        The evidence with ``estimators`` (each with ``auroc``, ``precision_at_k`` and ``cost``) and
        ``defects``, the study in full. Intervals are pairs of their ends throughout.
    """
    whole: dict[str, Any] = _with_pairs(study)
    return {**evidence, "estimators": whole.pop("estimators"), "defects": whole}


def _with_pairs(value: Any) -> Any:
    if isinstance(value, Mapping):
        inner = {name: _with_pairs(part) for name, part in value.items()}
        if {"low", "high"} <= inner.keys():
            inner["interval"] = [inner.pop("low"), inner.pop("high")]
        return inner
    return [_with_pairs(part) for part in value] if isinstance(value, list) else value


def estimator_sections(evidence: Mapping[str, Any]) -> dict[str, str]:
    """Sections about the estimators; none where they were not studied."""
    if "estimators" not in evidence:
        return {}
    study = evidence["defects"]
    sections = {
        "estimators": _estimators(evidence["estimators"], study["position_only"]),
        "weights": _weights(study["weights"]),
        "mitigations": _mitigations(study["mitigations"]),
        "faithfulness": _faithfulness(study["faithfulness"]),
        "stability": _stability(study["stability"], study["agreement"]),
    }
    if "unseen_defects" in study:  # a quick study trains no detectors
        sections["unseen"] = _unseen(study["unseen_defects"])
    return sections


def _estimators(estimators: Mapping[str, Any], position: Mapping[str, Any]) -> str:
    ranked = sorted(estimators.items(), key=lambda item: -item[1]["auroc"]["mean"])
    rows = [
        [
            name,
            _shown(found["auroc"]),
            _shown(found["precision_at_k"]),
            f"{1000 * found['cost']['cpu_seconds']:.1f}",
            f"{found['cost']['gflop']:.2f}",
        ]
        for name, found in ranked
    ]
    rows += [
        [f"position: {name}", _shown(found["auroc"]), _shown(found["precision_at_k"]), "", ""]
        for name, found in position.items()
        if isinstance(found, Mapping)
    ]
    best, found = ranked[0]
    gain = found["gain_over_position"]
    proven = "beats" if gain["interval"][0] > 0 else "does not provably beat"
    return _section(
        "How well the weights find the planted defects",
        ["estimator", "area under ROC", "precision at k", "CPU ms a pair", "GFLOP a pair"],
        rows,
        f"The best estimator, `{best}`, {proven} the best baseline that knows the position alone: "
        f"{_signed(gain)} in area.",
    )


def _weights(weights: Mapping[str, Any]) -> str:
    names = list(next(iter(weights.values())))
    rows = [
        [name, *(f"{ways[name]['auroc']['mean']:.3f}" for ways in weights.values())]
        for name in names
    ]
    return _section(
        "Area under ROC of the final weights, by how scores are mixed",
        ["estimator", *weights],
        rows,
    )


def _mitigations(mitigations: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            state,
            _shown(found["auroc"]),
            _signed(found["gain_over_plain"]) if name.count(" ") > 1 else "",
            *(f"{found['bias'][bias]['mean']:+.2f}" for bias in BIASES),
        ]
        for name in dict.fromkeys(name for found in mitigations.values() for name in found)
        for state, by_name in mitigations.items()
        for found in [by_name.get(name)]
        if found is not None
    ]
    return _section(
        "Biases, and what each mitigation does to them",
        ["estimator", "policy", "area under ROC", "minus without", *BIASES.values()],
        rows,
    )


def _faithfulness(faithfulness: Mapping[str, Any]) -> str:
    measures = [f"{kind} {target}" for target in TARGETS for kind in ("deletion", "insertion")]
    rows = [
        [name, *(_shown(found[m], 2) for m in measures)] for name, found in faithfulness.items()
    ]
    return _section("Faithfulness, beyond that of random order", ["estimator", *measures], rows)


def _stability(stability: Mapping[str, Any], agreement: Mapping[str, Any]) -> str:
    names = list(agreement)
    rows = [
        [
            name,
            *(_shown(stability[kind][name], 2) for kind in ("seeds", "white_space")),
            *(f"{agreement[name][other]:.2f}" for other in names),
        ]
        for name in names
    ]
    return _section(
        "Rank correlation over seeds, between paraphrased white space, and between estimators",
        ["estimator", "seeds", "white space", *(f"with {name}" for name in names)],
        rows,
    )


def _unseen(unseen: Mapping[str, Any]) -> str:
    rows = [[kind, _shown(found["auroc"])] for kind, found in unseen.items()]
    return _section(
        "Each kind of defect, by a detector trained without it", ["kind", "area under ROC"], rows
    )


def _section(
    title: str, head: Sequence[str], rows: Iterable[Sequence[str]], after: str = ""
) -> str:
    lines = [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in [head, *rows])]
    lines.insert(3, f"|{' --- |' * len(head)}")
    return "\n".join([*lines, *(["", after] if after else []), ""])


def _signed(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _shown(found: Mapping[str, Any], digits: int = 3) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
