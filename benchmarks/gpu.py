"""Everything that a GPU has to tell, in one command of 8 minutes: ``python -m benchmarks.gpu``.

Each part runs in a process of its own with a time limit, and is written when it is done: what the
machine is, whether results there are those of the CPU, the rows of the benchmark, and where a
step's time goes. A part that failed, or measured less than it should, makes the command fail.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks import gpu_checks, ours, suite, worker
from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import WORKLOADS
from lit_tidpo.devices.placement import default_device

Write = Callable[[dict[str, Any]], None]

SECONDS = 450.0
"""For all parts; loading the libraries comes on top."""

# Of each part, in seconds. What is left in the end is that of the last rows, too.
LIMITS = {
    "environment": 90.0,
    "correctness": 60.0,
    "benchmark": 270.0,
    "profile_plain": 40.0,
    "profile_tidpo": 60.0,
    "techniques": 120.0,
    "liger": 60.0,
}

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def _group(place: int, tiny: bool) -> suite.Group:
    return (suite.TINY_GPU if tiny else suite.GPU)[place]


def environment(write: Write, limit: float, tiny: bool) -> None:
    """The machine and the versions; and the weights and rows that the other parts train on."""
    names = ("torch", "transformers", "lightning", "trl", "peft", "triton", "liger-kernel")
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    is_gpu = default_device() == "cuda"
    machine = {
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor(),
        "memory_gb": torch.cuda.mem_get_info()[1] / 1e9 if is_gpu else None,
        "python": platform.python_version(),
        "versions": {name: found.get(name) for name in names},
    }
    write(machine)
    group = _group(0, tiny)
    WORKLOADS[group.workload].prepare(group.batches or group.steps)
    write({**machine, "passed": is_gpu or tiny})


def correctness(write: Write, limit: float, tiny: bool) -> None:
    """What :mod:`benchmarks.gpu_checks` compares."""
    write(gpu_checks.correctness(default_device()))


def benchmark(place: int, rounds: int, write: Write, limit: float, tiny: bool) -> None:
    """Rows of the suite, so many turns in one process, more if there is time.

    A contestant that fails leaves the later turns to the others.
    """
    group, rounds = _group(place, tiny), 1 if tiny else rounds
    runs: suite.Runs = {name: [] for name in group.contestants}
    errors: dict[str, str] = {}
    started, slowest, turn = time.monotonic(), 0.0, 0
    while turn < rounds or (
        not tiny and not errors and time.monotonic() - started + slowest < 0.9 * limit
    ):
        begun = time.monotonic()
        for name in group.contestants[:: 1 if turn % 2 == 0 else -1]:
            if name not in errors:
                try:
                    # Once, and without sampling: a counter takes its time.
                    counted = place == 0 and turn == 0
                    runs[name].append(_measured(group, name, counted))
                except Exception:  # whatever it is, the others are to be measured
                    errors[name] = traceback.format_exc()[-2000:]
            write(_rows(group, runs, errors, rounds))
        slowest, turn = max(slowest, time.monotonic() - begun), turn + 1


def _measured(group: suite.Group, name: str, counted: bool) -> dict[str, Any]:
    """One turn of a contestant, on a card that its forerunners have left."""
    gc.collect()
    held = 0
    if default_device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    # PyTorch cannot count what TRL's kernels do on a GPU.
    mode = "both" if counted and CONTESTANTS[name].side != "trl" else "time"
    found: dict[str, Any] = worker.measure(group.workload, name, group.steps, group.batches, mode)
    return {**found, "held_before": held}


def _rows(
    group: suite.Group, runs: suite.Runs, errors: dict[str, str], rounds: int
) -> dict[str, Any]:
    """Results of whole turns, and whether they are all that there should be."""
    flops = {name: {"flops": None, **found[0]} for name, found in runs.items() if found}
    rows = []
    for row in group.rows:
        turns = min(len(runs[row.ours]), len(runs[row.peer]))
        if turns:
            paired = {name: found[:turns] for name, found in runs.items()}
            found = suite.summarise(row, group, paired, flops)
            rows.append({**found, "met": found["met"] and turns >= rounds})
    losses = _losses(group, runs)
    enough = len(rows) == len(group.rows) and all(row["runs"] >= rounds for row in rows)
    passed = enough and not errors and all(each["passed"] for each in losses.values())
    return {"rows": rows, "losses": losses, "errors": errors, "passed": passed, "runs": runs}


def _losses(group: suite.Group, runs: suite.Runs) -> dict[str, Any]:
    """Mean losses of plain DPO, which must be the same: in bf16 each way rounds differently."""
    means = {
        name: statistics.mean(found[0]["losses"][: group.steps])
        for name, found in runs.items()
        if found and name.startswith(("plain", "trl_best"))
    }
    mine = means.pop("plain", None)
    if mine is None:
        return {}
    return {
        f"plain {mine:.4f}, {name} {theirs:.4f}": gpu_checks.check(abs(mine - theirs), 0.05)
        for name, theirs in means.items()
    }


def profile(contestant: str, write: Write, limit: float, tiny: bool) -> None:
    """Where the time of one step goes."""
    group, device = _group(0, tiny), default_device()
    load = WORKLOADS[group.workload]
    # The CPU's side of each operation would slow it down; calls of the driver come with the GPU's.
    is_gpu = device == "cuda"
    watch: Any = profiler(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU])
    times: list[float] = []

    def tick(loss: Any) -> None:
        if is_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) == 4:
            watch.__enter__()
        elif len(times) == 5:
            watch.__exit__(None, None, None)

    folder = load.prepare(group.batches or group.steps)
    ours.train(folder, load, CONTESTANTS[contestant], 5, tick)
    step = times[3] - times[2]  # without the profiler
    write({"step_s": step, "passed": True})
    where = summary(watch.events(), device.upper())
    write({"step_s": step, **where, "passed": bool(where["kernels_ms"])})


def summary(events: Iterable[Any], device: str) -> dict[str, Any]:
    """Kernels by time, the share of the time in which none ran, and waits for the device.

    Args:
        events: Of a profile.
        device: Whose events count as kernels: ``CUDA``, or ``CPU`` for a dry run.

    Returns:
        Milliseconds and numbers.
    """
    kernels: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    spans = []
    for event in events:
        start, end = event.time_range.start, event.time_range.end  # µs
        if event.device_type.name == device and not event.is_user_annotation:
            kernels.setdefault(event.name[:90], []).append(end - start)
            spans.append((start, end))
        elif event.name in WAITS:
            waits.setdefault(event.name, []).append(end - start)
    busy, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    whole = until - min(spans)[0] if spans else 0.0
    top = sorted(kernels.items(), key=lambda entry: -sum(entry[1]))[:20]
    return {
        "device_busy_ms": busy / 1e3,
        "idle_share": 1 - busy / whole if whole else None,
        "kernel_count": len(spans),
        "kernels_ms": {name: [sum(each) / 1e3, len(each)] for name, each in top},
        "waits_ms": {name: [sum(each) / 1e3, len(each)] for name, each in waits.items()},
    }


PARTS: dict[str, Callable[[Write, float, bool], None]] = {
    "environment": environment,
    "correctness": correctness,
    "benchmark": functools.partial(benchmark, 0, 3),
    "profile_plain": functools.partial(profile, "plain"),
    "profile_tidpo": functools.partial(profile, "tidpo_reuse_8"),
    "techniques": functools.partial(benchmark, 1, 1),
    "liger": functools.partial(benchmark, 2, 1),
}


class Part:
    """A part's process: it loads its libraries at once, and starts when it is told to.

    Args:
        name: A key of ``PARTS``.
        output: Folder of the results.
        tiny: Whether to run at sizes for a dry run.
    """

    def __init__(self, name: str, output: Path, tiny: bool) -> None:
        self.name = name
        self.file = output / f"gpu.{name}.json"
        self.file.unlink(missing_ok=True)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--part", name]
        command += ["--output", str(output), *(["--tiny"] if tiny else [])]
        # A session of its own, so that what the part has started ends with it and frees the device.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def run(self, limit: float) -> dict[str, Any]:
        """Let it start, and wait for it.

        Returns:
            What it found, and as ``error`` why it failed, if it did.
        """
        started, error = time.monotonic(), None
        try:
            self._process.communicate(f"{limit}\n", timeout=limit)
        except subprocess.TimeoutExpired:
            error = f"not done within {limit:.3g} s"
        self.stop()
        if error is None and self._process.returncode:
            self._errors.seek(0)
            error = f"status {self._process.returncode}: {self._errors.read()[-2000:]}"
        found = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.file.unlink(missing_ok=True)
        passed = error is None and bool(found.get("passed"))
        seconds = time.monotonic() - started
        return {**found, "error": error, "seconds": seconds, "passed": passed}

    def stop(self) -> None:
        """End the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def run_parts(names: Iterable[str], target: Path, tiny: bool) -> bool:
    """Run parts one after the other and write each into a file when it is done.

    Returns:
        Whether all of them passed.
    """
    parts = [Part(name, target.parent, tiny) for name in names]
    whole = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    started, passed = time.monotonic(), True
    try:
        for part in parts:
            left = SECONDS - (time.monotonic() - started)
            found = part.run(min(LIMITS[part.name], max(1.0, left)))
            whole[part.name] = found
            passed = passed and found["passed"]
            target.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
            print("\n".join(describe(part.name, found)), flush=True)
    finally:
        for part in parts:
            part.stop()
    return passed


def describe(name: str, found: dict[str, Any]) -> list[str]:
    """Lines that tell what a part found."""
    lines = [f"{name}: {'passed' if found['passed'] else 'FAILED'} in {found['seconds']:.0f} s"]
    for row in found.get("rows", []):
        low, middle, high = (row[f"ratio_{which}"] for which in ("min", "median", "max"))
        shares = ", ".join("-" if each is None else f"{each:.0%}" for each in row["utilisation"])
        lines.append(
            f"  {row['name']}: {middle:.2f} ({low:.2f} to {high:.2f}, {row['runs']} runs), target "
            f"{row['target']}; {row['ours']:.4g} and {row['peer']:.4g} {row['unit']}; "
            f"of the peak {shares}"
        )
    failed = [key for key, each in found.get("checks", {}).items() if not each["passed"]]
    errors = [found["error"], *found.get("errors", {}).values()]
    return [*lines, *(f"  not as on the CPU: {key}" for key in failed), *filter(None, errors)]


def main() -> None:
    """Run all parts, some, or one in this process; status 1 if any did not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", nargs="+", choices=PARTS, help="other results are kept")
    parser.add_argument("--part", choices=PARTS, help="run it here; its limit comes as input")
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run on a CPU")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        limit = sys.stdin.readline()
        if limit:  # none comes if the command has ended meanwhile
            file = output / f"gpu.{arguments.part}.json"
            PARTS[arguments.part](functools.partial(_put, file), float(limit), arguments.tiny)
        return
    target = output / "gpu.json"
    if not arguments.only:
        target.unlink(missing_ok=True)
    raise SystemExit(int(not run_parts(arguments.only or PARTS, target, arguments.tiny)))


def _put(file: Path, found: dict[str, Any]) -> None:
    """Write what was found so far; a part that is killed meanwhile leaves what stood there."""
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(found), encoding="utf-8")
    beside.replace(file)


if __name__ == "__main__":
    main()
