"""Draw what was measured into ``docs/performance.md``: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

PAGE = Path("docs/performance.md")
RESULTS = Path("benchmarks/results")


def line(result: dict[str, Any]) -> str:
    """One result as a line of a table."""
    target = ""
    if result["target"] is not None:
        sign = "≥" if result["ratio"].startswith("peer") else "≤"
        target = f"{sign} {result['target']:g}: {'met' if result['met'] else 'not met'}"
    ours, peer = result["contestants"]
    figures = f"{result['ours']:.4g} | {result['peer']:.4g} | {result['unit']}"
    spread = f"{result['ratio_min']:.2f} to {result['ratio_max']:.2f}"
    return (
        f"| `{result['name']}` | {ours} | {peer} | {figures} | **{result['ratio_median']:.2f}** "
        f"({spread}) | {result['wall_ratio_median']:.2f} | {result['flops_ratio']:.2f} | {target} |"
    )


HEAD = (
    "| row | ours | peer | ours | peer | unit | ratio, median (range) | ratio of wall time | "
    "ratio of FLOPs | target |\n|---|---|---|---|---|---|---|---|---|---|"
)


def table(results: list[dict[str, Any]]) -> str:
    """All results as a Markdown table, and where they were measured."""
    first = results[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    note = f"{first['device']}, {first['threads']} thread(s) a process, {first['runs']} runs each; "
    return "\n".join([HEAD, *map(line, results), "", f"{note}{versions}.{utilisation(results)}"])


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


def insert(page: str, mark: str, text: str) -> str:
    """Exchange what stands between the marks ``<!-- mark -->`` and ``<!-- end mark -->``."""
    start, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
    before, rest = page.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{text}\n{end}{after}"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lit_tidpo"  # the same figure gives the same file
    from matplotlib import pyplot

    return pyplot


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Draw the ratios with their ranges."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(results) + 1))
    for place, result in enumerate(reversed(results)):
        low, middle, high = (result[f"ratio_{which}"] for which in ("min", "median", "max"))
        colour = "tab:green" if result["met"] else "tab:red"
        axes.errorbar(
            middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=3
        )
        if result["target"] is not None:
            axes.plot(result["target"], place, "|", color="black", markersize=14)
    axes.set_yticks(range(len(results)), [result["name"] for result in reversed(results)])
    axes.axvline(1, color="grey", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlabel("ratio (bars: targets)")
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def scaling_table(points: list[dict[str, Any]]) -> str:
    """Time, memory and operations along each axis as a Markdown table."""
    head = (
        "| axis | value | µs per token, median (range) | peak memory, GB | MFLOP per token | "
        "GFLOP per second |\n|---|---|---|---|---|---|"
    )
    lines = []
    for point in points:
        times = point["us_per_token"]
        middle, operations = statistics.median(times), point["flops_per_token"]
        lines.append(
            f"| {point['axis']} | {point['value']} | {middle:.0f} ({min(times):.0f} to "
            f"{max(times):.0f}) | {statistics.median(point['memory_gb']):.2f} | "
            f"{operations / 1e6:.1f} | {operations / middle / 1e3:.1f} |"
        )
    return "\n".join([head, *lines])


def plot_scaling(points: list[dict[str, Any]], file: Path) -> None:
    """Draw time per token, as measured and in proportion to the operations, and peak memory."""
    pyplot = _pyplot()
    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    figure, panels = pyplot.subplots(2, len(axes_names), figsize=(11, 6), squeeze=False)
    for column, axis in enumerate(axes_names):
        chosen = [point for point in points if point["axis"] == axis]
        values = [point["value"] for point in chosen]
        times = [statistics.median(point["us_per_token"]) for point in chosen]
        flops = [point["flops_per_token"] for point in chosen]
        memory = [statistics.median(point["memory_gb"]) for point in chosen]
        panels[0][column].plot(values, times, "o-", label="measured")
        expected = [times[0] * each / flops[0] for each in flops]
        panels[0][column].plot(values, expected, "--", label="in proportion to the FLOPs")
        panels[1][column].plot(values, memory, "o-")
        for panel, label in zip(panels[:, column], ("µs per token", "peak GB"), strict=True):
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Write the tables and plots of all results that are there."""
    page = PAGE.read_text(encoding="utf-8")
    file = RESULTS / "cpu.json"
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
        plot(results, PAGE.parent / "performance_cpu.svg")
        page = insert(page, "cpu", f"{table(results)}\n\n![Ratios](performance_cpu.svg)")
    file = RESULTS / "scaling.json"
    if file.exists():
        points = json.loads(file.read_text(encoding="utf-8"))
        plot_scaling(points, PAGE.parent / "performance_scaling.svg")
        text = f"{scaling_table(points)}\n\n![Scaling](performance_scaling.svg)"
        page = insert(page, "scaling", text)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
