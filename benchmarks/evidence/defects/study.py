"""The study of the estimators, ``configs/evidence/defects.yaml``: do they find planted defects?"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from benchmarks.evidence.data import rows_of
from benchmarks.evidence.defects import measures, scoring
from benchmarks.evidence.defects.measures import over_modules
from benchmarks.evidence.defects.scoring import START, DefectRow, held_out_rows, made, score_rows
from benchmarks.evidence.grid import CODE as CELL
from benchmarks.evidence.grid import read_yaml, seeded
from benchmarks.evidence.intervals import Figure, auroc, precision
from benchmarks.evidence.runner import Unit
from lit_tidpo.assets.build.detector import train_detector

CODE = "defects/*.py data.py intervals.py"
Runs = Sequence[Sequence[Tensor]]  # scores of the rows by each seed
Study = Mapping[str, Any]


def trainings(study: Study) -> dict[str, list[Unit]]:
    """Units that train ``policies``, ``detectors`` and detectors ``without`` a kind of defect."""
    configs = [read_yaml(path) for path in study["policy"]["configs"]]
    args = {seed: [*study["policy"]["args"], *seeded(seed)] for seed in study["seeds"]}
    policies = [{"configs": configs, "args": words} for words in args.values()]
    own = [{"seed": seed, "without": ""} for seed in args if study["trained_detectors"]]
    without = [{"seed": 0, "without": kind} for kind in study["unseen"]]
    train, fit = "defects.study:detector", "cell:train_policy"
    return {
        "policies": [Unit("a policy", fit, a, CELL, True) for a in policies],
        "detectors": [Unit("a detector", train, a, CODE, True) for a in own],
        "without": [Unit("a detector", train, a, CODE, True) for a in without],
    }


def measurement(study: Study, folder: Path) -> Unit:
    """The unit that measures, with the models that :func:`trainings` left in a folder."""
    units = trainings(study).items()
    models = {name: [str(folder / unit.key) for unit in of_name] for name, of_name in units}
    arguments = {"study": dict(study), "models": models}
    return Unit("the estimators", "defects.study:measure", arguments, CODE)


def detector(folder: Path, seed: int, without: str) -> None:
    """Train a detector on the training modules, without a kind of defect if one is named."""
    data = folder / "data"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [row for row in rows_of(scoring.SOURCE, split) if row["defect"] != without]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_detector(folder, str(data), START, max_length=scoring.MAX_LENGTH, seed=seed)
    shutil.rmtree(data)


def measure(folder: Path, study: Study, models: Mapping[str, list[str]]) -> dict[str, Any]:
    """The ``estimators``, and all tables of the ``defects``, with models that were trained."""
    rows, start = held_out_rows("test", study["rows"]), scoring.frozen_policy(START)
    detail = rows[: study["detail_rows"]]  # for the costly measures
    policies = [scoring.frozen_policy(f"{path}/model") for path in models["policies"]]
    learnt = [row.ids["chosen_ids"] for row in held_out_rows("train", study["other_rows"])]
    tokens = folder / "tokens.jsonl"
    tokens.write_text("".join(f"{json.dumps({'token_ids': ids})}\n" for ids in learnt))
    paths = {"rarity": {"path": str(tokens)}}
    estimators = [
        made(study["estimators"], random={"seed": seed}, detector={"path": path}, **paths)
        for seed, path in enumerate(models["detectors"] or ["builtin:detector"] * len(policies))
    ]
    seeds = [
        score_rows(policy, start, rows, own)
        for policy, own in zip(policies, estimators, strict=True)
    ]
    runs = {name: [scores[name] for scores in seeds] for name in estimators[0]}
    first = {name: scores[: len(detail)] for name, scores in seeds[0].items()}
    options = made(study["mitigations"])
    long = {name: each for name, each in options.items() if "integrated" in name}
    batch, repeats = rows[: study["cost_pairs"]], study["cost_repeats"]
    costs = scoring.costs(start, batch, estimators[0] | long, repeats)
    blind = measures.by_position(rows, held_out_rows("validation", study["other_rows"]))
    best = max((areas_of([scores], rows) for scores in blind.values()), key=fmean)
    counts = Counter(token for ids in learnt for token in ids)
    once = {"detector": estimators[0]["detector"]}  # it does not look at the policy
    untrained = score_rows(start, start, detail, options | once)
    trained = score_rows(policies[0], start, detail, options)
    return {
        "estimators": {
            name: {
                **found(each, rows),
                "gain_over_position": gain(areas_of(each, rows), best, rows),
                "seeds": len(each),
                "cost": costs[name],
            }
            for name, each in runs.items()
        },
        "defects": {
            "position_only": {name: found([scores], rows) for name, scores in blind.items()},
            "weights": {
                way: {
                    name: found([scoring.weigh_rows(s, rows, weighting) for s in each], rows)
                    for name, each in runs.items()
                }
                for way, weighting in made(study["weightings"]).items()
            },
            "mitigations": {
                "untrained": biased(untrained, detail, start, counts),
                "trained": biased(trained, detail, policies[0], counts),
            },
            "faithfulness": measures.faithfulness(policies[0], start, detail, first),
            "stability": {
                "seeds": measures.over_seeds(runs, detail),
                "white_space": measures.over_white_space(
                    *(
                        (row, score_rows(policies[0], start, row, estimators[0]))
                        for row in zip(*scoring.paraphrased(detail), strict=True)
                    )
                ),
            },
            "agreement": measures.agreement(first),
            "cost": costs,
            "unseen_defects": {
                kind: _unseen(study, start, rows, kind, path)
                for kind, path in zip(study["unseen"], models["without"], strict=True)
            },
        },
    }


def areas_of(runs: Runs, rows: Sequence[DefectRow]) -> list[float]:
    """Area under the ROC curve of each row, the mean over seeds."""
    return [
        fmean(auroc(s, row.marked) for s in each) for row, *each in zip(rows, *runs, strict=True)
    ]


def found(runs: Runs, rows: Sequence[DefectRow]) -> dict[str, Figure]:
    """How well scores find the defects; k is the number of the defect's tokens."""
    precise = [
        fmean(precision(scores, row.marked, int(row.marked.sum())) for scores in each)
        for row, *each in zip(rows, *runs, strict=True)
    ]
    areas = over_modules(areas_of(runs, rows), rows)
    return {"auroc": areas, "precision_at_k": over_modules(precise, rows)}


def gain(areas: Sequence[float], others: Sequence[float], rows: Sequence[DefectRow]) -> Figure:
    """How much larger the areas of some scores are than those of others."""
    return over_modules([a - b for a, b in zip(areas, others, strict=True)], rows)


def biased(
    scores: Mapping[str, Sequence[Tensor]],
    rows: Sequence[DefectRow],
    policy: nn.Module,
    counts: Counter[int],
) -> dict[str, Any]:
    """Biases of estimators, and what each option does to their areas."""
    areas = {name: areas_of([values], rows) for name, values in scores.items()}
    return {
        name: {
            "auroc": over_modules(areas[name], rows),
            "gain_over_plain": gain(areas[name], areas[" ".join(name.split()[:2])], rows),
            "bias": measures.biases(values, rows, policy, counts),
        }
        for name, values in scores.items()
    }


def _unseen(
    study: Study, start: nn.Module, rows: Sequence[DefectRow], kind: str, path: str
) -> dict[str, Figure]:
    """A kind of defect by the detector that was trained without it."""
    chosen = [row for row in rows if row.fields["defect"] == kind]
    own = made({"detector": study["estimators"]["detector"]}, detector={"path": path})
    scores = score_rows(start, start, chosen, own)["detector"]
    return {"auroc": over_modules(areas_of([scores], chosen), chosen)}
