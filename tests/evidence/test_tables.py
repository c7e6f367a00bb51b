"""From metrics to comparisons, sentences and pages."""

import json
import math
import statistics

import pytest
import yaml

from benchmarks.evidence.collect import add_relative_cost, windowed
from benchmarks.evidence.grid import DEFAULT
from benchmarks.evidence.report import PAPER as PAPER_FILE
from benchmarks.evidence.report import comparisons, framed, sections, write_report
from benchmarks.report import filled, rendered

METRIC = "test/answers/right"
PAPER = {"dpo": {"0 %": 0.693, "40 %": 0.601}, "tidpo": {"0 %": 0.730, "40 %": 0.683}}


def b8(evidence):
    return evidence["tables"]["b8"]["results"]["arithmetic"]


def told(evidence, paper):
    """The section of the flips beside some figures of the paper."""
    about, table = evidence["provenance"], evidence["tables"]["b8"]
    parts = list(comparisons(about, table, {"accuracy": paper}))
    values = {"title": "Flips", "parts": parts, "titles": about["titles"]}
    return rendered("evidence", "table", values)


def paper_figures():
    return yaml.safe_load(PAPER_FILE.read_text(encoding="utf-8"))


def test_an_entry_holds_mean_interval_and_seeds(evidence):
    entry = b8(evidence)["dpo"]["0 %"]
    assert entry["mean"] == pytest.approx(0.55)
    half = 2.776 * statistics.stdev(entry["seeds"].values()) / math.sqrt(5)
    assert entry["interval"] == pytest.approx((0.55 - half, 0.55 + half), abs=1e-4)
    assert [*entry["seeds"]] == ["0", "1", "2", "3", "4"]
    assert entry["metrics"][METRIC]["mean"] == entry["mean"]


def test_methods_are_compared_with_dpo_at_the_same_setting(evidence):
    against = b8(evidence)["tidpo"]["40 %"]["metrics"][METRIC]["against"]["dpo"]
    assert against["difference"] == pytest.approx(0.0, abs=1e-12)
    gain = b8(evidence)["tidpo"]["0 %"]["metrics"][METRIC]["against"]["dpo"]
    assert gain["difference"] == pytest.approx(0.1)
    assert gain["p_holm"] == pytest.approx(2 * gain["p"])  # the smaller one of two
    assert "against" not in b8(evidence)["dpo"]["0 %"]["metrics"][METRIC]


def test_the_sentence_says_what_was_found(evidence):
    text = told(evidence, PAPER)
    assert "2; here 1 found with its sign (TI-DPO at 0 %)" in text
    assert "0 with the opposite sign" in text
    assert "1 not told from 0 (TI-DPO at 40 %)" in text
    assert "holds here in part" in text
    assert "From 0 % to 40 %, DPO goes from 0.550 to 0.350 (paper: 0.693 to 0.601)" in text


def test_the_verdict_turns_with_the_numbers(evidence):
    lower = {name: {s: 1 - v for s, v in row.items()} for name, row in PAPER.items()}
    assert "contradicted" in told(evidence, lower)
    only = {name: {"0 %": row["0 %"]} for name, row in PAPER.items()}
    assert "The paper's shape holds here." in told(evidence, only)
    only = {name: {"40 %": row["40 %"]} for name, row in PAPER.items()}
    assert "not shown here" in told(evidence, only)


def test_curves_are_compared_window_by_window(evidence):
    text = sections(evidence)["b10"]
    assert "below DPO's in 0 of 12 windows (paper: 12 of 12); its shape does not hold" in text
    assert "DPO ends at 0.510, TI-DPO at 0.610 (paper: 0.075 and 0.050)" in text


def test_windows_are_means_of_all_steps():
    assert windowed([float(k) for k in range(24)]) == [0.5 + 2 * k for k in range(12)]
    few = windowed([1.0, 2.0, 3.0])
    assert len(few) == 12
    assert few == sorted(few)
    assert {*few} == {1.0, 2.0, 3.0}


def test_cost_is_in_units_of_plain_dpo_with_the_same_seed():
    metrics = {
        ("code", "d1", "dpo", DEFAULT): {"cost/cpu_seconds": {"0": 10.0, "1": 20.0}},
        ("code", "d1", "tidpo", DEFAULT): {"cost/cpu_seconds": {"0": 15.0, "1": 50.0}},
    }
    add_relative_cost(metrics)
    assert metrics["code", "d1", "tidpo", DEFAULT]["cost/relative"] == {"0": 1.5, "1": 2.5}
    assert metrics["code", "d1", "dpo", DEFAULT]["cost/relative"] == {"0": 1.0, "1": 1.0}


def test_the_paper_s_averages_are_those_of_its_columns():
    table2 = {
        "tidpo": [65.4, 80.7, 34.6, 33.0, 63.5, 86.8],
        "no_triplet": [64.0, 79.0, 32.0, 31.0, 60.5, 83.0],
        "uniform": [64.0, 78.2, 30.5, 29.0, 58.0, 80.0],
        "random": [63.7, 77.8, 28.0, 28.5, 55.0, 78.0],
        "no_prior": [64.5, 79.7, 32.7, 31.5, 60.0, 82.5],
        "softmax_prior": [64.2, 78.8, 31.8, 30.0, 59.0, 81.0],
    }
    figures = paper_figures()["table2"]["average accuracy"]
    assert figures.keys() == table2.keys()
    for name, columns in table2.items():
        assert figures[name][DEFAULT] == pytest.approx(statistics.fmean(columns) / 100, abs=1e-4)


def interval(mean, reach=0.1):
    return {"mean": mean, "interval": [mean - reach, mean + reach]}


BIASES = ("position", "frequency", "embedding_norm", "last_share", "length")
TARGETS = ("response_logp", "log_ratio", "max_logit")
MEASURES = [f"{k} {t}" for t in TARGETS for k in ("deletion", "insertion")]
BIASED = {
    "auroc": interval(0.5),
    "gain_over_plain": interval(0.0),
    "bias": {name: {"mean": 0.25} for name in BIASES},
}
ESTIMATORS = {
    "gradient": {
        "auroc": interval(0.6, 0.05),
        "precision_at_k": interval(0.1, 0.05),
        "gain_over_position": interval(-0.01, 0.04),
        "cost": {"cpu_seconds": 0.004, "gflop": 1.5},
    },
    "detector": {
        "auroc": interval(0.93, 0.02),
        "precision_at_k": interval(0.5),
        "gain_over_position": interval(0.3, 0.03),
        "cost": {"cpu_seconds": 0.002, "gflop": 0.25},
    },
}
BOTH = {name: interval(0.8) for name in ESTIMATORS}
DEFECTS = {
    "position_only": {
        "best": "gaussian",
        "gaussian": {"auroc": interval(0.6), "precision_at_k": interval(0.1)},
    },
    "weights": {
        "default": {name: {"auroc": interval(0.61)} for name in ESTIMATORS},
        "no_prior": {name: {"auroc": interval(0.62)} for name in ESTIMATORS},
    },
    "mitigations": {
        "untrained": {"gradient max_logit l2": BIASED, "detector": BIASED},
        "trained": {"gradient max_logit l2": BIASED},
    },
    "faithfulness": {"gradient": {m: interval(k) for k, m in enumerate(MEASURES)}},
    "stability": {"seeds": BOTH, "white_space": BOTH},
    "agreement": {
        "gradient": {"gradient": 1.0, "detector": 0.3},
        "detector": {"detector": 1.0, "gradient": 0.3},
    },
    "unseen_defects": {"negation": {"auroc": interval(0.7)}},
}
STUDY = {"estimators": ESTIMATORS, "defects": DEFECTS}


def test_estimators_are_ranked_by_their_area(evidence):
    text = sections(evidence | STUDY)["estimators"]
    assert text.index("| detector |") < text.index("| gradient |")
    assert "| gradient | 0.600 [0.550, 0.650] | 0.100 [0.050, 0.150] | 4.0 | 1.50 |" in text
    assert "| position: gaussian | 0.600 [0.500, 0.700] | 0.100 [0.000, 0.200] |  |  |" in text
    assert "`detector`, beats the best baseline that knows the position alone: +0.300" in text
    assert "estimators" not in sections(evidence)


def test_every_part_of_the_study_has_its_table(evidence):
    parts = sections(evidence | STUDY)
    biased = (
        "| 0.500 [0.400, 0.600] | +0.000 [-0.100, +0.100] | +0.25 | +0.25 | +0.25 | +0.25 | +0.25 |"
    )
    assert "| estimator | default | no_prior |\n| --- | --- | --- |" in parts["weights"]
    assert "| gradient | 0.610 | 0.620 |" in parts["weights"]
    assert f"| gradient max_logit l2 | untrained {biased}" in parts["mitigations"]
    assert f"| gradient max_logit l2 | trained {biased}" in parts["mitigations"]
    assert "| detector | trained" not in parts["mitigations"]  # it does not look at the policy
    assert "| gradient | 0.00 [-0.10, 0.10] | 1.00 [0.90, 1.10] |" in parts["faithfulness"]
    assert (
        "| detector | 0.80 [0.70, 0.90] | 0.80 [0.70, 0.90] | 0.30 | 1.00 |" in parts["stability"]
    )
    assert "| negation | 0.700 [0.600, 0.800] |" in parts["unseen"]


def test_the_report_fills_the_documentation(evidence, tmp_path):
    findings = tmp_path / "findings.md"
    findings.write_text("Before\n<!-- evidence:b8 -->\nstale figures\n<!-- /evidence -->\nAfter\n")
    whole = json.loads(json.dumps(evidence | STUDY))
    write_report(whole, tmp_path, findings)
    page = findings.read_text()
    assert page.startswith("Before\n<!-- evidence:b8 -->\n")
    assert page.endswith("<!-- /evidence -->\nAfter\n")
    assert "stale figures" not in page
    assert "| TI-DPO | 0 % | 0.650 ± " in page
    assert "| 0.730 |" in page
    assert filled(page, framed(sections(whole))) == page
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 3  # two tables and the curves
    assert "<td>TI-DPO</td>" in html
    assert "![b8](b8.svg)" in (tmp_path / "report.md").read_text()


def test_a_measure_that_is_the_headline_is_shown_once(evidence):
    table = evidence["tables"]["b8"]
    table["measures"] = {"headline": "accuracy", METRIC: ""}
    assert sections(evidence)["b8"].count(METRIC) == 1


def test_the_choice_of_hyperparameters_is_shown(evidence):
    evidence["tuning"] = {"rate": evidence["tables"]["table1"] | {"title": "Learning rate"}}
    assert sections(evidence)["rate"].startswith("## Learning rate\n")


def test_a_mark_without_a_section_is_an_error(evidence):
    with pytest.raises(KeyError, match="nothing"):
        filled("<!-- evidence:nothing -->\n<!-- /evidence -->", sections(evidence))
