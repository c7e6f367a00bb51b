"""Areas and biases of estimators on a model of any size: what the study of a real one measures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.evidence.defects import measures, scoring
from benchmarks.evidence.defects.scoring import DefectRow, Estimators, Scores, made, score_rows
from benchmarks.evidence.defects.study import areas_of, biased, found, gain
from lit_tidpo.models.export import export_checkpoint


def measure(
    folder: Path,
    source: str,
    start: str,
    options: Mapping[str, Any],
    extent: Mapping[str, int],
    policies: Sequence[str],
) -> dict[str, Any]:
    """Areas under ROC of all estimators, of position alone, and biases.

    Args:
        folder: Where its files go.
        source: Of the pairs, whose ``rejected_span`` is marked.
        start: Folder of the model that is the reference, and the policy where there is no other.
        options: ``estimators`` and ``mitigations`` of the study of tiny models.
        extent: ``rows`` of the test split, ``detail_rows`` for the mitigations, ``other_rows`` of
            the splits that positions and frequencies are counted in, ``max_length``, and
            ``rows_at_once``, as large vocabularies take memory.
        policies: Checkpoints of the same training by seeds.
    """

    def rows_of(split: str, limit: int) -> list[DefectRow]:
        return scoring.held_out_rows(split, limit, source, start, extent["max_length"])

    rows, reference = rows_of("test", extent["rows"]), scoring.frozen_policy(start)
    others = rows_of("validation", extent["other_rows"])
    learnt = [row.ids["chosen_ids"] for row in rows_of("train", extent["other_rows"])]
    tokens = folder / "tokens.jsonl"
    tokens.write_text("".join(f"{json.dumps({'token_ids': ids})}\n" for ids in learnt))
    judge = {**options["estimators"]["judged attention"], "init_args": {"tokenizer": start}}
    own = {**options["estimators"], "judged attention": judge}
    estimators = made(own, rarity={"path": str(tokens)}, random={"seed": 0})
    folders = [export_checkpoint(Path(path), folder / str(k)) for k, path in enumerate(policies)]
    trained = [scoring.frozen_policy(str(place)) for place in folders] or [reference]
    at_once = extent["rows_at_once"]
    seeds = [_scores(policy, reference, rows, estimators, at_once) for policy in trained]
    blind = measures.by_position(rows, others)
    best = max((areas_of([scores], rows) for scores in blind.values()), key=fmean)
    runs = {name: [scores[name] for scores in seeds] for name in estimators}
    detail = rows[: extent["detail_rows"]]
    varied = score_rows(trained[0], reference, detail, made(options["mitigations"]), at_once)
    counts = Counter(token for ids in learnt for token in ids)
    return {
        "rows": len(rows),
        "groups": len({row.module for row in rows}),
        "detail_rows": len(detail),
        "policies": len(policies),
        "marked": fmean(float(row.marked.float().mean()) for row in rows),
        "estimators": {
            name: {
                **found(each, rows),
                "gain_over_position": gain(areas_of(each, rows), best, rows),
            }
            for name, each in runs.items()
        },
        "position_only": {name: found([scores], rows) for name, scores in blind.items()},
        "mitigations": biased(varied, detail, trained[0], counts),
        "bias": {
            name: measures.biases(each[0], rows, trained[0], counts) for name, each in runs.items()
        },
    }


def _scores(
    policy: Any, reference: Any, rows: Sequence[DefectRow], options: Estimators, at_once: int
) -> Scores:
    """Scores of all, of those that look at one response without the other beside it."""
    apart = [
        {name: each for name, each in options.items() if (each.looks_at == "group") == paired}
        for paired in (False, True)
    ]
    return {
        name: scores
        for some in apart
        for name, scores in score_rows(policy, reference, rows, some, at_once).items()
    }
