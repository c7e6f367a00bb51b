"""The study from end to end, on a few rows and policies trained for two steps."""

from __future__ import annotations

import json

import pytest

from benchmarks.evidence import runner
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
def folder(study, run_here, tmp_path_factory):
    """With the policies."""
    place = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_start", run_here)
        run_units([unit for units in trainings(study).values() for unit in units], place, 1)
        yield place


def measured(study, folder):
    unit = measurement(study, folder)
    run_units([unit], folder, 1)
    return unit.result(folder)["result"]


@pytest.fixture(scope="module")
def result(study, folder):
    return measured(study, folder)


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


def test_measuring_a_few_again_gives_the_same_but_for_the_clock(study, folder, result):
    few = {"random", "detector", "rarity", "gradient max_logit", "surprisal policy"}
    options = {
        key: {name: each for name, each in study[key].items() if name in few}
        for key in ("estimators", "mitigations")
    }
    again = measured({**study, **options}, folder)
    assert again["estimators"].keys() == few
    for name, found in again["estimators"].items():
        assert {**found, "cost": 0} == {**result["estimators"][name], "cost": 0}
    first, second = (each["defects"]["mitigations"] for each in (result, again))
    assert second["trained"]["gradient max_logit"] == first["trained"]["gradient max_logit"]
