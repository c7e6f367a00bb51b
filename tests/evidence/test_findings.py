"""The results in the repository, and the page that is drawn from them."""

import json
import re

import pytest

from benchmarks.evidence.__main__ import EVIDENCE, FINDINGS
from benchmarks.evidence.collect import table_results
from benchmarks.evidence.grid import CONFIGS, read_grid
from benchmarks.evidence.report import framed, sections, write_report
from benchmarks.report import RESULTS, ROOT, filled


@pytest.fixture(scope="module")
def results():
    return json.loads(EVIDENCE.read_text(encoding="utf-8"))


def test_every_table_method_and_setting_has_mean_interval_and_five_seeds(results):
    grid = read_grid(CONFIGS / "grid.yaml")
    assert results["tables"].keys() == grid.tables.keys()
    for name, table in grid.tables.items():
        for task in table.tasks or grid.tasks:
            for method in table.methods:
                for setting in table.settings:
                    entry = results["tables"][name]["results"][task][method][setting]
                    low, high = entry["interval"]
                    assert low <= entry["mean"] <= high
                    assert len(entry["seeds"]) >= 5


def test_every_estimator_has_area_precision_and_cost(results):
    for found in results["estimators"].values():
        for measure in ("auroc", "precision_at_k"):
            low, high = found[measure]["interval"]
            assert low <= found[measure]["mean"] <= high
        assert found["cost"].keys() == {"cpu_seconds", "gflop"}


def test_the_best_estimator_finds_planted_defects_on_held_out_modules(results):
    best = max(results["estimators"].values(), key=lambda found: found["auroc"]["mean"])
    assert best["auroc"]["mean"] >= 0.9
    assert best["gain_over_position"]["interval"][0] > 0


def test_the_page_s_figures_are_those_of_the_results(results):
    page = FINDINGS.read_text(encoding="utf-8")
    parts = sections(results)
    assert filled(page, framed(parts)) == page
    assert {*re.findall(r"<!-- evidence:(\w+) -->", page)} == parts.keys()


def test_the_reports_are_drawn_from_the_results(results, tmp_path):
    """To the byte, the page with the plots included."""
    findings = tmp_path / "findings.md"
    findings.write_text("")
    write_report(results, tmp_path, findings)
    for file in ("report.md", "report.html"):
        assert (tmp_path / file).read_text() == (RESULTS / file).read_text()


def test_intervals_and_comparisons_are_those_of_the_recorded_seeds(results):
    """All statistics of the tables once more, from the values by seed."""
    for name, path in (("tables", "grid.yaml"), ("tuning", "tuning.yaml")):
        grid = read_grid(CONFIGS / path)
        metrics = {
            (task, table, method, setting): {
                metric: found["seeds"] for metric, found in entry["metrics"].items()
            }
            for table, content in results[name].items()
            for task, methods in content["results"].items()
            for method, settings in methods.items()
            for setting, entry in settings.items()
        }
        for task, table in dict.fromkeys(entry[:2] for entry in metrics):
            again = table_results(grid, metrics, task, table)
            assert near(again, results[name][table]["results"][task])


def near(value, recorded):
    """Equal but for the recorded one's 6 digits, which leave differences fewer and break ties."""
    if isinstance(recorded, dict):
        assert value.keys() == recorded.keys()
        return all(near(value[key], recorded[key]) for key in recorded if key != "p_wilcoxon")
    if isinstance(recorded, list):
        return all(near(a, b) for a, b in zip(value, recorded, strict=True))
    return value == pytest.approx(recorded, rel=2e-3, abs=2e-5)


def difference(results, table, task, method, other, metric=None, setting="default"):
    entry = results["tables"][table]["results"][task][method][setting]
    about = results["provenance"]["tasks"][task]
    return shown(entry["metrics"][metric or about["headline"]]["against"][other], "difference")


def shown(found, name="mean"):
    low, high = found["interval"]
    return f"{found[name]:+.3f} [{low:+.3f}, {high:+.3f}]"


@pytest.fixture(scope="module")
def prose_figures(results):
    """What the summary says in numbers, made from the results."""
    rewards = "test/rewards/accuracies"
    compared = [
        ("table1", "code", "tidpo", "dpo"),
        ("table1", "arithmetic", "tidpo", "dpo"),
        ("table1", "arithmetic", "tdpo2", "dpo"),
        ("table1", "arithmetic", "tdpo2", "tidpo"),
        ("table2", "arithmetic", "no_triplet", "dpo"),
        ("table2", "arithmetic", "planted", "dpo"),
        ("table2", "arithmetic", "planted", "dpo", rewards),
        ("table2", "code", "planted", "dpo"),
        ("rates", "arithmetic", "tidpo", "dpo", None, "1e-5"),
    ]
    study = results["defects"]
    areas = {name: found["auroc"]["mean"] for name, found in results["estimators"].items()}
    unseen = [found["auroc"]["mean"] for found in study["unseen_defects"].values()]
    without_last = study["mitigations"]["trained"]["gradient max_logit exclude_target"]
    cost = {
        task: tables["tdpo2"]["default"]["metrics"]["cost/relative"]["mean"]
        for task, tables in results["tables"]["d1"]["results"].items()
    }
    return [
        *(difference(results, *each) for each in compared),
        f"area under ROC of {areas['gradient max_logit']:.3f}",
        f"position alone with {study['position_only']['last_token']['auroc']['mean']:.3f}",
        f"with {areas['detector']:.3f}, if",
        f"between {min(unseen):.3f} and {max(unseen):.3f}",
        f"| {areas['log_ratio']:.3f}, at no cost",
        f"| {areas['gradient log_ratio']:.3f} at twice the cost",
        shown(without_last["gain_over_plain"]).replace("+", ""),
        f"{cost['code']:.2f} and {cost['arithmetic']:.2f} times",
    ]


def test_the_summary_says_what_was_measured(prose_figures):
    text = " ".join(FINDINGS.read_text(encoding="utf-8").partition("<!-- evidence:")[0].split())
    assert [figure for figure in prose_figures if figure not in text] == []


def test_the_readme_says_what_was_measured(results):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for task in ("code", "arithmetic"):
        for table, method in {
            ("table1", "tidpo"),
            ("table1", "tdpo2"),
            ("table2", "no_triplet"),
            ("table2", "planted"),
        }:
            assert difference(results, table, task, method, "dpo") in text
    for found in results["estimators"].values():
        if found["auroc"]["mean"] >= 0.9:
            assert f"{found['auroc']['mean']:.3f}" in text
