"""The evidence as Markdown, a page with plots, and the figures in the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import markdown
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.evidence.grid import DEFAULT
from benchmarks.evidence.intervals import rank_correlation
from benchmarks.report import filled, rendered, save

PAPER, TEMPLATE = Path(__file__).with_name("paper.yaml"), "evidence"
LEVEL = 0.05
LOSS = "train/loss/total"
STUDIED = ("estimators", "weights", "mitigations", "faithfulness", "stability", "unseen")
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img,svg{max-width:100%}"
)

Place = tuple[str, str]  # method, setting


def write_report(evidence: dict[str, Any], folder: Path, findings: Path) -> None:
    """Write ``report.md``, ``report.html`` and plots, and fill the page of the findings in."""
    parts, plots = sections(evidence), draw_plots(evidence, folder)
    images = {name: f"\n![{name}]({plot.name})\n" for name, plot in plots.items()}
    text = "\n".join(f"{part}\n{images.get(name, '')}" for name, part in parts.items())
    text = f"# Evidence\n\n{text}"
    (folder / "report.md").write_text(text, encoding="utf-8")
    body = markdown.markdown(text, extensions=["tables"])
    for name, plot in plots.items():
        drawing = plot.read_text(encoding="utf-8").partition("<svg")
        body = body.replace(f'<img alt="{name}" src="{plot.name}" />', "".join(drawing[1:]))
    head = f"<!doctype html><meta charset=utf-8><title>Evidence</title><style>{_STYLE}</style>"
    (folder / "report.html").write_text(head + body, encoding="utf-8")
    findings.write_text(filled(findings.read_text(encoding="utf-8"), framed(parts)), "utf-8")


def framed(parts: Mapping[str, str]) -> dict[str, str]:
    """Sections with the blank lines that they have between the page's marks."""
    return {name: f"\n{part}\n" for name, part in parts.items()}


def sections(evidence: Mapping[str, Any]) -> dict[str, str]:
    """All sections of the report as Markdown, by name."""
    about, paper = evidence["provenance"], yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    titles, parts = about["titles"], {"about": rendered(TEMPLATE, "about", about)}
    for name, table in (evidence["tables"] | evidence.get("tuning", {})).items():
        compared = list(comparisons(about, table, paper.get(name, {})))
        values = {"title": table["title"], "parts": compared, "titles": titles}
        parts[name] = rendered(TEMPLATE, "table", values)
    values = {**evidence, "paper": paper["b10"]["loss"]}
    parts["b10"] = rendered(TEMPLATE, "b10", values)
    if "estimators" in evidence:
        values = {**evidence["defects"], "estimators": evidence["estimators"]}
        parts |= {name: rendered(TEMPLATE, name, values) for name in STUDIED}
    return parts


def comparisons(about: Any, table: Any, paper: Any) -> Iterator[dict[str, Any]]:
    """What the template shows of each task and measure of a table."""
    for task, results in table["results"].items():
        names, measures = about["tasks"][task], {}
        for measure, beside in table["measures"].items():
            measures.setdefault(names.get(measure, measure), beside)  # it may be the headline
        for metric, beside in measures.items():
            found, figures = entries(results, metric), _flat(paper.get(beside, {}))
            others = dict.fromkeys(o for entry in found.values() for o in entry.get("against", ()))
            settings = {method: list(of) for method, of in results.items()}
            pairs = [(found[place]["mean"], figures[place]) for place in found if place in figures]
            yield {
                "task": names,
                "metric": metric,
                "beside": beside,
                "entries": found,
                "paper": figures,
                "settings": any(setting != DEFAULT for _, setting in found),
                "ends": {method: (of[0], of[-1]) for method, of in settings.items()},
                "names": {o: label(o.partition("/")[::2], about["titles"]) for o in others},
                "compared": {o: outcomes(found, figures, o, about["titles"]) for o in others},
                "ranked": len(pairs),
                "rank_correlation": rank_correlation(*zip(*pairs, strict=True)) if pairs else 0,
            }


def outcomes(
    found: Mapping[Place, Any], figures: Mapping[Place, float], other: str, titles: Any
) -> dict[str, list[str]]:
    """Entries whose difference from another one has the ``same`` sign as the paper's, or not."""
    method, _, setting = other.partition("/")
    told: dict[str, list[str]] = {"same": [], "opposite": [], "unclear": []}
    for place, entry in found.items():
        here, there = entry.get("against", {}).get(other), figures.get(place)
        base = figures.get((method, setting or place[1]), figures.get((method, DEFAULT)))
        if here is not None and None not in (base, there) and there != base:
            sign = "same" if (here["difference"] > 0) == (there > base) else "opposite"
            told["unclear" if here["p_holm"] >= LEVEL else sign].append(label(place, titles))
    return told


def _flat(methods: Mapping[str, Mapping[str, Any]]) -> dict[Place, Any]:
    return {(m, s): value for m, settings in methods.items() for s, value in settings.items()}


def entries(results: Any, metric: str) -> dict[Place, Any]:
    """A metric of each method and setting that has it."""
    found = {place: entry["metrics"] for place, entry in _flat(results).items()}
    return {place: metrics[metric] for place, metrics in found.items() if metric in metrics}


def label(place: Sequence[str], titles: Mapping[str, str], between: str = " at ") -> str:
    """A method and its setting, for readers."""
    method, setting = place
    return titles[method] + (f"{between}{setting}" if setting not in ("", DEFAULT) else "")


def draw_plots(evidence: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every table and the training losses; the file of each section."""
    about, drawn = evidence["provenance"], {}
    for name, table in evidence["tables"].items():
        figure, panels = _panels(table["results"])
        for axes, (task, results) in zip(panels, table["results"].items(), strict=True):
            first = next(iter(table["measures"]))
            metric = about["tasks"][task].get(first, first)
            found = dict(reversed(entries(results, metric).items()))
            halves = [(e["interval"][1] - e["interval"][0]) / 2 for e in found.values()]
            means = [entry["mean"] for entry in found.values()]
            axes.errorbar(means, range(len(means)), xerr=halves, fmt="o", capsize=3)
            names = [label(place, about["titles"], " ") for place in found]
            axes.set_yticks(range(len(means)), names, fontsize=8)
            axes.set_title(f"{task}: {metric}", fontsize=9)
        drawn[name] = save(figure, folder / f"{name}.svg")
    figure, panels = _panels(evidence["curves"])
    for axes, (task, curves) in zip(panels, evidence["curves"].items(), strict=True):
        for method, found in curves.items():
            steps, means = range(1, len(found[LOSS]) + 1), [p["mean"] for p in found[LOSS]]
            axes.plot(steps, means, label=about["titles"][method])
            ends = zip(*(point["interval"] for point in found[LOSS]), strict=True)
            axes.fill_between(steps, *ends, alpha=0.2)
        axes.set_title(f"{task}: training loss", fontsize=9)
        axes.legend(fontsize=8)
    return {**drawn, "b10": save(figure, folder / "b10.svg")}


def _panels(tasks: Mapping[str, Any]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    return figure, list(figure.subplots(1, len(tasks), squeeze=False)[0])
