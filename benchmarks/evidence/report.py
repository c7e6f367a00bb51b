"""The report: Markdown, a page, plots, and the figures in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import markdown

from benchmarks.evidence.estimator_tables import estimator_sections
from benchmarks.evidence.grid import DEFAULT
from benchmarks.evidence.plots import draw_plots
from benchmarks.evidence.shape import curve_shape, paper_figures, shape

Sections = dict[str, str]

_MARKED = re.compile(r"(<!-- evidence:(\w+) -->\n).*?(<!-- /evidence -->)", re.DOTALL)
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img,svg{max-width:100%}"
)


def write_report(evidence: dict[str, Any], folder: Path, findings: Path) -> None:
    """Write ``report.md``, ``report.html`` and plots, and fill the documentation's figures in.

    Args:
        evidence: Content of ``evidence.json``.
        folder: Where reports go.
        findings: Page with places for figures, ``<!-- evidence:NAME --> ... <!-- /evidence -->``.
    """
    parts = sections(evidence)
    plots = draw_plots(evidence, folder)
    text = "# Evidence\n\n" + "\n".join(
        f"{part}\n{_images(plots.get(name, []))}" for name, part in parts.items()
    )
    (folder / "report.md").write_text(text, encoding="utf-8")
    body = markdown.markdown(text, extensions=["tables"])
    for plot in (path for paths in plots.values() for path in paths):
        drawing = plot.read_text(encoding="utf-8")
        inline = drawing[drawing.index("<svg") :]
        image = re.search(rf'<img [^>]*src="{re.escape(plot.name)}"[^>]*>', body)
        assert image is not None  # written above
        body = body.replace(image[0], inline)
    head = f"<!doctype html><meta charset=utf-8><title>Evidence</title><style>{_STYLE}</style>"
    (folder / "report.html").write_text(head + body, encoding="utf-8")
    findings.write_text(filled(findings.read_text(encoding="utf-8"), parts), encoding="utf-8")


def filled(page: str, parts: Sections) -> str:
    """Put sections between a page's marks.

    Args:
        page: Markdown with ``<!-- evidence:NAME -->`` and ``<!-- /evidence -->``.
        parts: Sections by name.

    Returns:
        The page with each marked place replaced.

    Raises:
        KeyError: If a mark names no section.
    """
    return _MARKED.sub(lambda mark: f"{mark[1]}\n{parts[mark[2]]}\n{mark[3]}", page)


def sections(evidence: Mapping[str, Any]) -> Sections:
    """All sections of the report as Markdown, by name."""
    paper = paper_figures()
    parts = {"about": _about(evidence["provenance"])}
    for name, table in (evidence["tables"] | evidence.get("tuning", {})).items():
        lines = [f"## {table['title']}", ""]
        for task in table["results"]:
            lines += _task_lines(evidence["provenance"], table, task, paper.get(name, {}))
        parts[name] = "\n".join(lines)
    parts["b10"] = _curves(evidence, paper)
    return parts | estimator_sections(evidence)


def _about(provenance: Mapping[str, Any]) -> str:
    seeds, hours = provenance["seeds"], provenance["cpu_seconds"] / 3600
    return (
        f"{provenance['cells']} runs with the seeds {', '.join(map(str, seeds))}, "
        f"{hours:.1f} hours of one core in all; Python {provenance['python']}, torch "
        f"{provenance['torch']}, {provenance['machine']}. Figures are means over seeds, ± half of "
        f"the 95 % interval (Student's t, {len(seeds) - 1} degrees of freedom), which covers "
        "data order, anchors and flips, not the choice of the test pairs, which all runs share. "
        "Differences are paired by seed; p is of the paired t-test, with Holm's correction over "
        "the table's comparisons with one entry on one task. Wilcoxon's test is in the JSON.\n"
    )


def _task_lines(about: Any, table: Any, task: str, paper: Any) -> Iterator[str]:
    titles, results = about["titles"], table["results"][task]
    shown = set()
    for measure, beside in table["measures"].items():
        metric = about["tasks"][task].get(measure, measure)
        if metric in shown:  # it is the task's headline
            continue
        shown.add(metric)
        figures = paper.get(beside, {})
        yield f"**{about['tasks'][task]['title']}**, `{metric}`"
        yield ""
        yield from _rows(results, metric, figures, beside, titles)
        yield ""
        yield shape(results, metric, figures, titles)
        yield ""


def _rows(
    results: Any, metric: str, paper: Any, beside: str, titles: Mapping[str, str]
) -> Iterator[str]:
    entries = [(m, s, results[m][s]["metrics"]) for m in results for s in results[m]]
    entries = [(m, s, metrics[metric]) for m, s, metrics in entries if metric in metrics]
    others = list(dict.fromkeys(o for _, _, e in entries for o in e.get("against", {})))
    compared = [part for other in others for part in (f"minus {_name(other, titles)}", "p (Holm)")]
    settings = any(setting != DEFAULT for _, setting, _ in entries)
    head = ["method", *(["setting"] if settings else []), "here", *compared]
    head += [f"paper: {beside}"] if beside else []
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for method, setting, entry in entries:
        row = [titles[method], *([setting] if settings else []), _with_interval(entry)]
        for other in others:
            row += _compared(entry.get("against", {}).get(other))
        figure = paper.get(method, {}).get(setting)
        row += ["" if figure is None else f"{figure:.3f}"] if beside else []
        yield f"| {' | '.join(row)} |"


def _name(other: str, titles: Mapping[str, str]) -> str:
    method, _, setting = other.partition("/")
    return titles[method] + (f" at {setting}" if setting else "")


def _with_interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['mean']:.3f} ± {(high - low) / 2:.3f}"


def _compared(comparison: Mapping[str, Any] | None) -> list[str]:
    if comparison is None:
        return ["", ""]
    low, high = comparison["interval"]
    difference = f"{comparison['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return [difference, f"{comparison['p_holm']:.3f}"]


def _curves(evidence: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    titles = evidence["provenance"]["titles"]
    lines = ["## Loss curves (Table B10)", ""]
    for task, curves in evidence["curves"].items():
        lines += [f"**{evidence['provenance']['tasks'][task]['title']}**", ""]
        count = len(next(iter(curves.values()))["train/loss/total"])
        lines += ["| window of training |" + "".join(f" {k} |" for k in range(1, count + 1))]
        lines += ["|" + " --- |" * (count + 1)]
        for method, quantities in curves.items():
            means = [f"{point['mean']:.3f}" for point in quantities["train/loss/total"]]
            lines += [f"| {titles[method]} | {' | '.join(means)} |"]
            figures = [f"{value:.3f}" for value in paper["b10"]["loss"][method]]
            lines += [f"| {titles[method]}, paper | {' | '.join(figures)} |"]
        lines += ["", curve_shape(curves, paper["b10"]["loss"], titles), ""]
    return "\n".join(lines)


def _images(plots: list[Path]) -> str:
    return "".join(f"\n![{plot.stem}]({plot.name})\n" for plot in plots)
