"""The command from end to end, on a few rows and policies trained for three steps."""

from __future__ import annotations

import json

import pytest

from benchmarks.evidence.defects.__main__ import main
from benchmarks.evidence.estimator_tables import estimator_sections, merged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("defects")
    for name in ("first", "second"):
        main(["--quick", "--output", str(folder / name), "--folder", str(folder / "trained")])
    return [json.loads((folder / name).read_text()) for name in ("first", "second")]


def test_every_estimator_has_its_figures(runs):
    for name, found in runs[0]["estimators"].items():
        for measure in ("auroc", "precision_at_k", "precision_at_5"):
            interval = found[measure]
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1, name
        assert found["seeds"] == 2
        assert found["cost"].keys() == {"cpu_seconds", "gflop"}
    assert {"detector", "log_ratio", "gradient max_logit", "random"} <= runs[0]["estimators"].keys()


def test_what_must_hold_on_any_rows(runs):
    result = runs[0]
    assert result["contrast"]["auroc"]["mean"] > 0.9  # the answer itself
    assert result["estimators"]["detector"]["auroc"]["mean"] > 0.8
    assert result["agreement"]["detector"]["detector"] == 1.0
    for table in ("finding", "weights", "mitigations", "faithfulness", "stability", "cost"):
        assert result[table], table


def test_the_report_has_a_row_for_every_estimator(runs):
    parts = estimator_sections(merged({}, runs[0]))
    assert parts.keys() == {"estimators", "weights", "mitigations", "faithfulness", "stability"}
    for name in ("estimators", "weights", "faithfulness", "stability"):
        assert all(f"| {found} |" in parts[name] for found in runs[0]["estimators"]), name


def test_the_second_run_trains_nothing_and_measures_the_same(runs):
    first, second = (dict(run) for run in runs)
    for run in (first, second):
        for clocked in ("minutes", "cost", "estimators"):
            del run[clocked]
    assert first == second
