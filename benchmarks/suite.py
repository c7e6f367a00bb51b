"""Run the benchmark: ``python -m benchmarks.suite cpu`` (or ``shapes``, ``scaling``).

Contestants on the same workload take turns, each time in a fresh process; a ratio is taken within a
round. Before a timing counts, our losses over some steps must be TRL's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import LENGTHS, PAIRS, WIDTHS

Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: Its name in the results.
        ours: Contestant.
        peer: Contestant to compare with.
        metric: ``cpu_s`` (seconds of processor a step), ``wall_s``, ``typical_s``
            (the median step's) or ``memory`` (peak bytes).
        faster: Whether the ratio is the peer's figure over ours; otherwise it is ours over it.
        target: What the median ratio should reach: at least it if ``faster``, else at most.
    """

    name: str
    ours: str
    peer: str
    metric: str = "cpu_s"
    faster: bool = False
    target: float | None = None

    def ratio(self, ours: dict[str, Any], peer: dict[str, Any], metric: str | None = None) -> float:
        """Ratio of two runs."""
        mine, other = ours[metric or self.metric], peer[metric or self.metric]
        return float(other / mine if self.faster else mine / other)


@dataclass(frozen=True)
class Group:
    """Rows on one workload, measured in the same rounds.

    Attributes:
        workload: A key of ``WORKLOADS``.
        steps: Optimizer steps of a run, the warm-up included.
        rows: Comparisons.
        batches: Batches in an epoch; None has as many as steps.
        alone: Whether nothing may run beside it.
    """

    workload: str
    steps: int
    rows: tuple[Row, ...]
    batches: int | None = None
    alone: bool = False

    @property
    def contestants(self) -> list[str]:
        """Everyone who runs, once."""
        return list(dict.fromkeys(name for row in self.rows for name in (row.peer, row.ours)))


def _against_trl(shape: str, target: float | None = None) -> Row:
    name = f"dpo_speed_vs_trl_best/{shape}" if shape else "dpo_speed_vs_trl_best"
    return Row(name, "plain", "trl_best", faster=True, target=target)


def _technique(name: str, without: str) -> Row:
    return Row(f"technique/{name}", "plain", without, faster=True)


CPU = (
    # One measured epoch: each batch once, and the anchors of eight steps are sampled once.
    Group(
        "ragged",
        10,
        (
            _against_trl("", 2.0),
            Row("dpo_memory_vs_trl_best", "plain", "trl_best", "memory"),
            Row("gradient_importance_overhead", "importance", "plain", target=1.25),
            Row("tidpo_vs_trl_dpo", "tidpo", "trl_best", target=1.5),
            Row("tidpo_reused_anchors_vs_trl_dpo", "tidpo_reuse_8", "trl_best", target=1.1),
            Row("tidpo_vs_plain_dpo", "tidpo", "plain"),
            Row("technique/anchors_of_8_steps", "tidpo_reuse_8", "tidpo", faster=True),
        ),
        batches=8,
        alone=True,  # sampling reads all weights for each token: a neighbour slows it down most
    ),
    Group(
        "ragged",
        3,
        (
            Row("tidpo_vs_naive", "tidpo", "naive_tidpo", faster=True, target=8.0),
            Row("tidpo_vs_naive/short_anchors", "tidpo", "naive_tidpo_short_anchors", faster=True),
        ),
    ),
    Group(
        "ragged",
        18,
        (
            Row(
                "gradient_importance_overhead_amortised", "importance_every_16", "plain", target=1.1
            ),
        ),
        batches=2,
    ),
    Group(
        "vocab128k",
        3,
        (
            Row("dpo_memory_vs_trl_best_vocab128k", "plain", "trl_best", "memory", target=0.5),
            _against_trl("vocab128k"),
        ),
    ),
    Group(
        "even",
        10,
        (Row("two_processes_efficiency", "plain_two_processes", "plain", "wall_s", True, 0.9),),
        alone=True,
    ),
)

# Single techniques, and other shapes of the data.
SHAPES = (
    Group(
        "ragged",
        6,
        (
            _technique("reference_cache", "plain_online_reference"),
            _technique("shared_prompt", "plain_packed"),
            _technique("shared_prompt_and_no_padding", "plain_padded"),
            _technique("tiles_instead_of_all_logits", "plain_tiles"),
            Row("technique/compiled_layers", "plain_compiled", "plain", faster=True),
            Row("dpo_speed_vs_trl_default", "plain", "trl_default", faster=True),
            Row(
                "gradient_importance_overhead/online_reference",
                "importance_online_reference",
                "plain_online_reference",
            ),
        ),
    ),
    Group(
        "ragged",
        3,
        (
            Row("tidpo_vs_naive/without_cache", "tidpo", "naive_tidpo_without_cache", faster=True),
            Row("tidpo_vs_naive/pair_by_pair", "tidpo", "naive_tidpo_pair_by_pair", faster=True),
        ),
    ),
    Group("short", 10, (_against_trl("short"),)),
    Group(
        "long_1to1",
        5,
        (
            _against_trl("long_1to1"),
            Row("gradient_importance_overhead/long_1to1", "importance", "plain"),
        ),
    ),
    Group("long_1to3", 5, (_against_trl("long_1to3"),)),
    Group("ungrouped", 8, (_against_trl("ungrouped"),)),
    Group("bf16", 8, (_against_trl("bf16"),)),
)

SWEEPS = {"length": LENGTHS, "pairs": PAIRS, "width": WIDTHS}

# Eight measured steps, each batch once, for which kept anchors are sampled once.
GPU = (
    Group(
        "gpu_1b",
        10,
        (
            Row("dpo_speed_vs_trl_best", "plain", "trl_best", "wall_s", True, 1.3),
            Row("dpo_memory_vs_trl_best", "plain", "trl_best", "memory"),
            Row("gradient_importance_overhead", "importance", "plain", "wall_s", target=1.3),
            Row(
                "tidpo_reused_anchors_vs_trl_dpo", "tidpo_reuse_8", "trl_best", "wall_s", target=1.2
            ),
        ),
        batches=8,
    ),
    Group(
        "gpu_1b",
        10,
        (
            Row("technique/varlen_attention", "plain", "plain_laid_out", "wall_s", True),
            Row("technique/compiled_layers", "plain_compiled", "plain", "typical_s", True),
        ),
        batches=8,
    ),
    Group(
        "gpu_1b",
        10,
        (
            Row("technique/liger", "plain_liger", "plain", "wall_s", True),
            Row("technique/liger_memory", "plain_liger", "plain", "memory"),
        ),
        batches=8,
    ),
)
# The same rows at a size for a dry run.
TINY_GPU = tuple(replace(group, workload="tiny", steps=4, batches=2) for group in GPU)


def run(workload: str, contestant: str, steps: int, batches: int | None, mode: str) -> Any:
    """Run one contestant in a process of its own.

    Returns:
        What :func:`benchmarks.worker.measure` returns.

    Raises:
        RuntimeError: If it fails.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", workload, contestant]
    command += ["--steps", str(steps), "--mode", mode]
    command += [] if batches is None else ["--batches", str(batches)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_losses(group: Group) -> None:
    """Compare the losses of all who train plain DPO in one process, and so on the same batches.

    Raises:
        RuntimeError: If ours are not TRL's.
    """
    names = [
        name
        for name in group.contestants
        if name.startswith(("trl_best", "plain")) and CONTESTANTS[name].devices == 1
    ]
    losses = {n: run(group.workload, n, 4, group.batches, "losses")["losses"] for n in names}
    # In bf16 the two sides round differently.
    tolerance = 0.05 if group.workload in ("bf16", "gpu_1b") else 1e-3
    for name, values in losses.items():
        pairs = zip(values, losses[names[0]], strict=True)
        if not all(math.isclose(*pair, abs_tol=tolerance) for pair in pairs):
            raise RuntimeError(f"{group.workload}: {name} trains on other losses: {losses}")


def measure_group(group: Group, rounds: int) -> list[dict[str, Any]]:
    """Measure all rows of a group.

    Args:
        group: The rows.
        rounds: Runs of each contestant.

    Returns:
        Results, as they are written.
    """
    check_losses(group)
    with ThreadPoolExecutor(2) as lanes:  # operations do not depend on neighbours
        counts = lanes.map(
            lambda name: run(group.workload, name, group.steps, group.batches, "flops"),
            group.contestants,
        )
        flops = dict(zip(group.contestants, counts, strict=True))
    runs: Runs = {name: [] for name in group.contestants}
    for turn in range(rounds):
        order = group.contestants if turn % 2 == 0 else group.contestants[::-1]
        for name in order:
            runs[name].append(run(group.workload, name, group.steps, group.batches, "time"))
    return [summarise(row, group, runs, flops) for row in group.rows]


def summarise(
    row: Row, group: Group, runs: Runs, flops: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Make a result of the runs."""
    pairs = list(zip(runs[row.ours], runs[row.peer], strict=True))
    ratios = [row.ratio(*pair) for pair in pairs]
    first = runs[row.ours][0]
    ours, peer = (
        statistics.median(_figure(run, row.metric) for run in runs[name])
        for name in (row.ours, row.peer)
    )
    return {
        "name": row.name,
        "unit": "GB" if row.metric == "memory" else f"tokens per {row.metric}",
        "workload": group.workload,
        "ours": ours,
        "peer": peer,
        "ratio": "peer's over ours" if row.faster else "ours over peer's",
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "wall_ratio_median": statistics.median(row.ratio(*pair, "wall_s") for pair in pairs),
        "flops_ratio": (
            row.ratio(flops[row.ours], flops[row.peer], "flops")
            if flops[row.ours]["flops"] and flops[row.peer]["flops"]
            else None  # where a contestant's kernels cannot be counted
        ),
        "ours_flops": flops[row.ours]["flops"],
        "peer_flops": flops[row.peer]["flops"],
        "utilisation": [_utilisation(runs[name], flops[name]) for name in (row.ours, row.peer)],
        "target": row.target,
        "met": row.target is None or _met(row, statistics.median(ratios)),
        "runs": len(pairs),
        "contestants": [row.ours, row.peer],
        "steps": group.steps,
        "shape": first["workload"],
        "device": first["device"],
        "threads": first["threads"],
        "versions": first["versions"],
    }


def _figure(run: dict[str, Any], metric: str) -> float:
    if metric == "memory":
        return float(run["memory"] / 1e9)
    return float(run["useful_tokens"] / run[metric])


def _utilisation(runs: list[dict[str, Any]], flops: dict[str, Any]) -> float | None:
    """Share of the GPU's operations that a contestant uses, in wall time."""
    peak = runs[0].get("peak_flops")
    return (
        peak
        and flops["flops"]
        and float(flops["flops"]) / statistics.median(run["wall_s"] for run in runs) / peak
    )


def _met(row: Row, ratio: float) -> bool:
    assert row.target is not None
    return ratio >= row.target if row.faster else ratio <= row.target


def sweep_point(axis: str, value: int) -> dict[str, Any]:
    """Measure plain DPO at one length, batch size or model size, twice."""
    name = f"{axis}_{value}"
    runs = [run(name, "plain", 3, None, "time") for _ in range(2)]
    flops = run(name, "plain", 3, None, "flops")["flops"]
    tokens = runs[0]["useful_tokens"]
    return {
        "axis": axis,
        "value": value,
        "us_per_token": [1e6 * each["cpu_s"] / tokens for each in runs],
        "memory_gb": [each["memory"] / 1e9 for each in runs],
        "flops_per_token": flops / tokens,
    }


def main() -> None:
    """Measure, write the results after each group, and draw the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=["cpu", "shapes", "scaling"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=2, help="groups that run side by side")
    parser.add_argument(
        "--only", help="measure workloads whose name contains this; keep the others"
    )
    arguments = parser.parse_args()
    if arguments.suite == "scaling":
        sweep(arguments.lanes)
    else:
        compare(arguments)
    report.main()


def sweep(lanes: int) -> None:
    """Measure time and memory against length, batch size and model size, on the CPU."""
    places = [(axis, value) for axis, values in SWEEPS.items() for value in values]
    with ThreadPoolExecutor(lanes) as pool:
        points = list(pool.map(lambda place: sweep_point(*place), places))
    write(report.RESULTS / "scaling.json", points)


def compare(arguments: argparse.Namespace) -> None:
    """Measure ours and the peers in turn; other results are kept."""
    suite = {"cpu": CPU, "shapes": SHAPES}[arguments.suite]
    file = report.RESULTS / "cpu.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    groups = [group for group in suite if (arguments.only or "") in group.workload]
    results = {result["name"]: result for result in known}
    order = [row.name for group in CPU + SHAPES for row in group.rows]

    def measure(group: Group) -> None:
        for result in measure_group(group, arguments.rounds):
            results[result["name"]] = result
            print(report.line(result), flush=True)
        ordered = [results[name] for name in order if name in results]
        write(file, ordered)

    with ThreadPoolExecutor(arguments.lanes) as lanes:
        list(lanes.map(measure, [group for group in groups if not group.alone]))
    for group in groups:
        if group.alone:
            measure(group)


def write(file: Path, results: list[dict[str, Any]]) -> None:
    """Write results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
