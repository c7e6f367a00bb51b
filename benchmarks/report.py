"""The report writer, and what it draws of the speed: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/performance.md"

mpl.rcParams["svg.hashsalt"] = "evidence"  # the same figure gives the same file


def rendered(template: str, block: str, values: Mapping[str, Any]) -> str:
    """A block of a template in ``benchmarks/templates``, as Markdown that ends with its line."""
    found = _environment().get_template(f"{template}.md.jinja")
    text = "".join(found.blocks[block](found.new_context(dict(values))))
    return text.strip("\n") + "\n"


def _environment() -> Environment:
    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    made = Environment(
        loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"shown": shown, "listed": listed, "below": below, "median": statistics.median}
    return made


def shown(figure: Mapping[str, Any], digits: int = 3, sign: str = "", name: str = "mean") -> str:
    """A figure with its interval, such as ``0.553 [0.527, 0.583]``."""
    values = (figure[name], *figure["interval"])
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def listed(names: Sequence[str]) -> str:
    """Names in brackets; nothing if there are none."""
    return f" ({', '.join(names)})" if names else ""


def below(curves: tuple[Sequence[float], Sequence[float]]) -> int:
    """Points at which the second curve is below the first."""
    return sum(b < a for a, b in zip(*curves, strict=True))


def filled(page: str, parts: Mapping[str, str], kind: str = "evidence") -> str:
    """Exchange what stands between the marks of a page; one that names no part is a KeyError.

    Marks are ``<!-- KIND:NAME --> ... <!-- /KIND -->`` or ``<!-- NAME --> ... <!-- end NAME -->``.
    """
    pattern = rf"(<!-- (?:{kind}:)?(\w+) -->\n).*?(<!-- (?:/{kind}|end \2) -->)"
    marked = re.compile(pattern, re.DOTALL)
    return marked.sub(lambda mark: f"{mark[1]}{parts[mark[2]]}{mark[3]}", page)


def save(figure: Figure, file: Path, **options: Any) -> Path:
    """Write a figure without the date."""
    figure.savefig(file, metadata={"Date": None}, **options)
    return file


def line(result: dict[str, Any]) -> str:
    """One result of the speed as a line of a table."""
    return rendered("performance", "line", result).strip()


def utilisation(results: list[dict[str, Any]]) -> str:
    """Which share of the GPU's operations each contestant uses; nothing on a CPU."""
    shares = {
        name: share
        for result in results
        for name, share in zip(result["contestants"], result["utilisation"], strict=True)
        if share is not None
    }
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f" Share of the GPU's peak operations: {listed}." if shares else ""


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Draw the ratios with their ranges."""
    figure = Figure(figsize=(8, 0.34 * len(results) + 1))
    axes = figure.subplots()
    for place, result in enumerate(reversed(results)):
        low, middle, high = (result[f"ratio_{which}"] for which in ("min", "median", "max"))
        colour = "tab:green" if result["met"] else "tab:red"
        bars = {"xerr": [[middle - low], [high - middle]], "fmt": "o", "capsize": 3}
        axes.errorbar(middle, place, color=colour, **bars)
        if result["target"] is not None:
            axes.plot(result["target"], place, "|", color="black", markersize=14)
    axes.set_yticks(range(len(results)), [result["name"] for result in reversed(results)])
    axes.axvline(1, color="grey", linewidth=0.5)
    axes.set(xscale="log", xlabel="ratio (bars: targets)")
    save(figure, file, bbox_inches="tight")


def plot_scaling(points: list[dict[str, Any]], file: Path) -> None:
    """Draw time per token, as measured and in proportion to the operations, and peak memory."""
    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure = Figure(figsize=(11, 6))
    panels = figure.subplots(2, len(axes), squeeze=False)
    for (above, below), axis in zip(panels.T, axes, strict=True):
        chosen = [point for point in points if point["axis"] == axis]
        values, flops = ([each[key] for each in chosen] for key in ("value", "flops_per_token"))
        times, memory = (
            [statistics.median(each[key]) for each in chosen]
            for key in ("us_per_token", "memory_gb")
        )
        above.plot(values, times, "o-", label="measured")
        expected = [times[0] * each / flops[0] for each in flops]
        above.plot(values, expected, "--", label="in proportion to the FLOPs")
        below.plot(values, memory, "o-")
        for panel, label in ((above, "µs per token"), (below, "peak GB")):
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
    panels[0][0].legend()
    figure.tight_layout()
    save(figure, file)


def main() -> None:
    """Write the tables and plots of all results that are there."""
    parts = {"cpu": "", "scaling": ""}
    for name in parts:
        file = RESULTS / f"{name}.json"
        if not file.exists():
            continue
        results = json.loads(file.read_text(encoding="utf-8"))
        draw = plot_scaling if name == "scaling" else plot
        draw(results, PAGE.parent / f"performance_{name}.svg")
        values = {"points": results, "first": results[0], "device": name}
        if name != "scaling":
            values |= {"lines": map(line, results), "utilisation": utilisation(results)}
        block = "scaling" if name == "scaling" else "results"
        parts[name] = rendered("performance", block, values)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
