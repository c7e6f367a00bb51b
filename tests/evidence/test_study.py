"""The study from end to end, on a few rows and policies trained for two steps."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks.evidence.__main__ import EVIDENCE
from benchmarks.evidence.defects.study import measurement, trainings
from benchmarks.evidence.grid import read_yaml
from benchmarks.evidence.report import sections
from benchmarks.evidence.runner import run_units

pytestmark = pytest.mark.slow
EXTENT = {
    "seeds": [0, 1],
    "trained_detectors": False,
    "rows": 4,
    "other_rows": 20,
    "detail_rows": 2,
    "cost_pairs": 2,
    "cost_repeats": 1,
    "unseen": [],
}


@pytest.fixture(scope="module")
def study():
    content = read_yaml("configs/evidence/defects.yaml") | EXTENT
    args = [*content["policy"]["args"], "--trainer.max_steps=2"]
    mitigations = {**content["mitigations"]}
    for target in ("max_logit", "response_logp"):
        short = {"target": target, "steps": 2}
        name = f"gradient {target} integrated"
        mitigations[name] = {**mitigations[name], "init_args": short}
    policy = {**content["policy"], "args": args}
    return {**content, "policy": policy, "mitigations": mitigations}


@pytest.fixture(scope="module")
def results(study, tmp_path_factory):
    """Measured twice, by policies that were trained once."""
    folder = tmp_path_factory.mktemp("study")
    run_units([unit for units in trainings(study).values() for unit in units], folder, 2)
    unit, found = measurement(study, folder), []
    for _ in range(2):
        run_units([unit], folder, 1)
        found.append(unit.result(folder)["result"])
        shutil.rmtree(folder / unit.key)
    return found


@pytest.fixture(scope="module")
def result(results):
    return results[0]


def test_every_estimator_has_its_figures(result):
    for name, found in result["estimators"].items():
        for measure in ("auroc", "precision_at_k"):
            low, high = found[measure]["interval"]
            assert 0 <= low <= found[measure]["mean"] <= high <= 1, name
        assert found["seeds"] == 2
        assert found["cost"].keys() == {"cpu_seconds", "gflop"}
    assert {"detector", "log_ratio", "gradient max_logit", "random"} <= result["estimators"].keys()
    assert {"difference", "rarity", "entropy policy", "contrast"} <= result["estimators"].keys()


def test_what_must_hold_on_any_rows(result):
    assert result["estimators"]["detector"]["auroc"]["mean"] > 0.8
    # It is told where the responses differ; the defect is there, and the tokens around it.
    assert result["estimators"]["difference"]["auroc"]["mean"] > 0.9
    assert result["defects"]["agreement"]["detector"]["detector"] == 1.0
    cost = result["defects"]["cost"]
    assert cost["gradient max_logit integrated"]["gflop"] > cost["gradient max_logit"]["gflop"]
    for table in ("weights", "mitigations", "faithfulness", "stability", "position_only"):
        assert result["defects"][table], table


def test_the_report_has_a_row_for_every_estimator(result, evidence):
    parts = sections(evidence | result)
    for name in ("estimators", "weights", "faithfulness", "stability"):
        assert all(f"| {found} |" in parts[name] for found in result["estimators"]), name


def test_the_recorded_study_has_the_same_tables(result):
    recorded = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    assert result["estimators"].keys() >= recorded["estimators"].keys()
    assert result["defects"].keys() <= recorded["defects"].keys()
    for table in ("weights", "mitigations", "faithfulness", "cost", "agreement"):
        assert result["defects"][table].keys() >= recorded["defects"][table].keys()


def test_measuring_again_gives_the_same_but_for_the_clock(results):
    for found in results:
        del found["defects"]["cost"]
        for estimator in found["estimators"].values():
            del estimator["cost"]
    assert results[0] == results[1]
