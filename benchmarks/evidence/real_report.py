"""What was found on a real model: sections of the findings, and the page on choosing a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence.collect import BASELINE
from benchmarks.evidence.grid import DEFAULT
from benchmarks.evidence.intervals import compare
from benchmarks.evidence.report import comparisons, framed
from benchmarks.report import ROOT, filled, rendered, save

TEMPLATE, MARK = "real", "real"
PAGES = (ROOT / "docs/findings.md", ROOT / "docs/choosing.md")
PICTURE = ROOT / "docs/choosing.svg"
PARTS = {  # source and depth: title, and what intervals are over
    ("code_4m", "before"): ("4M, code", "modules"),
    ("code", "before"): ("135M, code", "modules"),
    ("gsm8k", "before"): ("135M, GSM8K's first wrong step", "problems"),
    ("gsm8k", "during"): ("the same halfway through DPO", "problems"),
    ("gsm8k", "after"): ("the same after DPO", "problems"),
}
BIASES = ("position", "frequency", "embedding_norm", "last_share", "length")
POSITIONS = ("gaussian", "last_token", "learnt")
SELECTION, HEADLINE = "val/rewards/accuracies", "test/rewards/accuracies"
SIZE = 3  # the least number of seeds that anything is said of


def sections(real: Mapping[str, Any]) -> dict[str, str]:
    """All sections as Markdown, by name."""
    about, parts = real["provenance"], studied(real)
    names = ranked(parts[-1]) if parts else []
    gradients = [name for name in names if name.startswith("gradient")]
    titles = {name: task["title"] for name, task in about["tasks"].items()}
    common = {**about, "parts": parts, "titles": titles, "methods": about["titles"]}
    varied = [*parts[0]["mitigations"]] if parts else []
    values = {
        "about": common,
        "shift": {**common, "names": names, "positions": POSITIONS},
        "bias": {**common, "names": gradients, "biases": BIASES},
        "mitigations": {**common, "names": varied},
        "best_rates": {**common, "best": best_rates(real)},
        "finding": {
            **common,
            "trained": trained(real),
            "unmeasured": unmeasured(real),
            "contradictions": contradictions(parts),
        },
    }
    found = {name: rendered(TEMPLATE, name, each) for name, each in values.items()}
    for name, table in real["tables"].items():
        compared = list(comparisons(about, table, {}))
        shown = {"title": table["title"], "parts": compared, "titles": about["titles"]}
        text = rendered("evidence", "table", shown).removeprefix(f"## {table['title']}\n")
        text = text.replace(NO_FIGURES, "") if compared else "\nNot measured yet.\n"
        found[name] = f"#### {table['title']}\n{text}"
    return found


NO_FIGURES = "The paper has no figures to compare with."


def studied(real: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of the study that there are, in the order of the table."""
    parts = []
    for (source, depth), (title, clusters) in PARTS.items():
        found = real["study"].get(source, {}).get(depth)
        if found is not None:
            areas = {name: each["auroc"] for name, each in found["position_only"].items()}
            better = {
                name: each["gain_over_position"]["interval"][0]
                for name, each in found["estimators"].items()
            }
            parts.append(
                {
                    **found,
                    "name": f"{source} {depth}",
                    "title": title,
                    "clusters": clusters,
                    "better": [name for name in ranked(found) if better[name] > 0],
                    "best": max(alone(found), key=lambda name: alone(found)[name]),
                    "position": max(areas.values(), key=lambda area: area["mean"]),
                }
            )
    return parts


def contradictions(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the real model says otherwise than the tiny one or the paper, in words.

    Models differ in an estimator where its intervals on the same pairs do not overlap. The paper's
    gradient weights find what matters where their area is above the best guess by position, and do
    not where it is not above it for certain.
    """
    by_name = {part["name"]: part for part in parts}
    tiny, same_pairs = by_name.get("code_4m before"), by_name.get("code before")
    found = []
    if tiny is not None and same_pairs is not None:
        ends = {
            name: (each["auroc"]["interval"], same_pairs["estimators"][name]["auroc"]["interval"])
            for name, each in tiny["estimators"].items()
        }
        higher = [name for name, (small, large) in ends.items() if large[0] > small[1]]
        lower = [name for name, (small, large) in ends.items() if large[1] < small[0]]
        for names, how in ((higher, "better"), (lower, "worse")):
            if names:
                listed = ", ".join(f"`{name}`" for name in names)
                found.append(f"The real model finds defects {how} than the tiny one by {listed}.")
    real = [part for part in parts if part is not tiny]
    at_chance = [p["title"] for p in real if "gradient max_logit" not in p["better"]]
    if at_chance:
        found.append(
            "The paper's gradient weights are not told from a guess by position: "
            f"{'; '.join(at_chance)}."
        )
    return found


def alone(part: Mapping[str, Any]) -> dict[str, float]:
    """Areas of estimators that are not told the other response."""
    told = {"difference", "optimal_transport", "judged attention"}
    found = part["estimators"].items()
    return {name: each["auroc"]["mean"] for name, each in found if name not in told}


def ranked(part: Mapping[str, Any]) -> list[str]:
    """Estimators from the largest area down."""
    return sorted(
        part["estimators"], key=lambda name: -float(part["estimators"][name]["auroc"]["mean"])
    )


def trained(real: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task, the headline of each method at the default rate, plain DPO first."""
    found: dict[str, dict[str, Any]] = {}
    for table in real["tables"].values():
        for task, results in table["results"].items():
            entries = {
                m: of[DEFAULT]["metrics"][HEADLINE] for m, of in results.items() if DEFAULT in of
            }
            if len(entries) > 1 and len(real["provenance"]["seeds"]) >= SIZE:
                found[task] = {BASELINE: entries[BASELINE], **entries}
    return found


def unmeasured(real: Mapping[str, Any]) -> list[str]:
    """What the grid and the study were to measure and have not."""
    about, missing = real["provenance"], []
    for name, wanted in about["wanted_methods"].items():
        results = real["tables"][name]["results"]
        have = {method for of in results.values() for method in of}
        left = [about["titles"][method] for method in wanted if method not in have]
        if left:
            which = f" ({', '.join(left)})" if len(left) < len(wanted) else ""
            missing.append(f"{real['tables'][name]['title']}{which}")
    for (source, depth), (title, _) in PARTS.items():
        if depth not in real["study"].get(source, {}):
            missing.append(f"where importance falls, {title}")
    return missing


def best_rates(real: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task and method, the test's result at the rate that is best on the validation split.

    A method counts once it has been run at all rates that plain DPO has, at three or more.
    """
    best: dict[str, dict[str, Any]] = {}
    for name, table in real["tables"].items():
        for task, results in table["results"].items() if "rates" in name else ():
            rates = results.get(BASELINE, {}).keys()
            whole = {method: of for method, of in results.items() if of.keys() >= rates}
            if len(rates) < SIZE or BASELINE not in whole:
                continue
            chosen = {
                method: max(of, key=lambda rate: of[rate]["metrics"][SELECTION]["mean"])
                for method, of in whole.items()
            }
            entries = {m: whole[m][rate]["metrics"][HEADLINE] for m, rate in chosen.items()}
            plain = entries[BASELINE]["seeds"]
            best[task] = {
                method: {
                    **entry,
                    "rate": chosen[method],
                    "against": compare(entry["seeds"], plain) if method != BASELINE else None,
                }
                for method, entry in entries.items()
            }
    return best


def write_pages(real: Mapping[str, Any], pages: tuple[Path, ...] = PAGES) -> None:
    """Fill the pages in, and draw the picture beside the last one."""
    parts = framed(sections(real))
    for page in pages:
        text = filled(page.read_text(encoding="utf-8"), parts, MARK)
        page.write_text(text, encoding="utf-8")
    draw(real, pages[-1].with_suffix(".svg"))


def draw(real: Mapping[str, Any], file: Path) -> Path:
    """Draw the areas of all estimators at each size, and what training with weights gives."""
    parts, results = studied(real), trained(real)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 1 + len(results), squeeze=False)[0]
    names = [*reversed(ranked(parts[-1]))]
    for number, part in enumerate(parts):
        found = [part["estimators"][name]["auroc"] for name in names]
        means = [each["mean"] for each in found]
        reach = [
            [e["mean"] - e["interval"][0] for e in found],
            [e["interval"][1] - e["mean"] for e in found],
        ]
        places = [place + 0.2 * (number - (len(parts) - 1) / 2) for place in range(len(names))]
        label, options = part["title"], {"fmt": "o", "markersize": 3, "linewidth": 1}
        bars = panels[0].errorbar(means, places, xerr=reach, label=label, **options)
        panels[0].axvline(part["position"]["mean"], color=bars[0].get_color(), linestyle=":")
    panels[0].set_yticks(range(len(names)), names, fontsize=7)
    panels[0].set_title("area under ROC (dotted: the best guess by position)", fontsize=9)
    panels[0].legend(fontsize=7)
    for axes, (task, entries) in zip(panels[1:], results.items(), strict=True):
        means = [entry["mean"] for entry in entries.values()]
        halves = [(e["interval"][1] - e["interval"][0]) / 2 for e in entries.values()]
        axes.errorbar(means, range(len(means)), xerr=halves, fmt="o", capsize=3)
        axes.set_yticks(
            range(len(means)), [real["provenance"]["titles"][m] for m in entries], fontsize=8
        )
        axes.set_title(f"{task}: test reward accuracy", fontsize=9)
    return save(figure, file)
