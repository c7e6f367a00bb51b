"""Everything that a GPU has to tell, in one command of a few minutes: ``python -m benchmarks.gpu``.

Each part runs in a process of its own with a time limit, and is written when it is done: what the
machine is, whether results there are those of the CPU, the rows of the benchmark, and where a
step's time goes.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer

from benchmarks import ours, suite
from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import WORKLOADS
from lit_tidpo import PreferenceModule
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.sampling.generation import AnchorOptions, Generation
from lit_tidpo.testing import tiny_batch, tiny_policy

LIMITS = {
    "environment": 60,
    "correctness": 90,
    "benchmark": 330,
    "profile_plain": 60,
    "profile_tidpo": 60,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def environment(tiny: bool) -> dict[str, Any]:
    """The machine and the versions."""
    names = ("torch", "transformers", "lightning", "trl", "peft", "triton")
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor(),
        "memory_gb": torch.cuda.mem_get_info()[1] / 1e9 if DEVICE == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: found.get(name) for name in names},
    }


def correctness(tiny: bool) -> dict[str, Any]:
    """Largest differences from padded rows in fp32 on the CPU, and what may be at the most."""
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = _values("cpu", "padded")
    checks = {}
    for layout in ("padded", "packed", "shared_prompt"):
        for precision, limits in (("fp32", (1e-4, 1e-3, 1e-3)), ("bf16", (0.5, 0.2, 0.5))):
            found = _values(DEVICE, layout, precision)
            for name, limit in zip(("log_probs", "gradients", "weights"), limits, strict=True):
                error = (found[name] - expected[name]).abs().max()
                scale = expected[name].abs().max() if name == "gradients" else 1.0
                checks[f"{name}, {layout}, {precision}"] = _check(float(error / scale), limit)
    greedy = Generation(AnchorOptions(max_new_tokens=16, top_k=1))
    batch, policy = tiny_batch(), tiny_policy()
    there = greedy.sample(copy.deepcopy(policy).to(DEVICE), move_data_to_device(batch, DEVICE))
    here = greedy.sample(policy, batch)
    same = torch.equal(there.lengths.cpu(), here.lengths) and torch.equal(
        there.input_ids.cpu(), here.input_ids
    )
    checks["greedy anchors"] = _check(float(not same), 0.0)
    for name, options in (("full", {}), ("lora", {"lora": LoraOptions(r=4)})):
        for precision in ("32-true", "bf16-mixed"):
            checks[f"training moves, {name}, {precision}"] = _trains(options, precision)
    return {"checks": checks, "passed": all(check["passed"] for check in checks.values())}


def _check(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "limit": limit, "passed": value <= limit}


def _values(device: str, layout: Any, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """Log-probs, gradients and importance weights of a small model."""
    module = PreferenceModule(
        PolicyConfig(),
        importance=HybridImportance(),
        losses={"preference": WeightedDPOLoss()},
        layout=layout,
    )
    module.attach(tiny_policy().to(device), tiny_policy(seed=1).to(device))
    batch = move_data_to_device(tiny_batch(), torch.device(device))
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        found = module(batch)
    found.loss.mean().backward()
    gradients = [p.grad.flatten() for p in module.built_policy.parameters() if p.grad is not None]
    assert found.weights is not None
    values = {
        "log_probs": found.context.responses["policy.logps"].detach(),
        "gradients": torch.cat(gradients),
        "weights": found.weights,
    }
    return {name: value.float().cpu() for name, value in values.items()}


def _trains(policy: dict[str, Any], precision: Any) -> dict[str, Any]:
    """Whether some steps of the whole objective, with validation, lower its loss."""
    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
            losses.append(float(outputs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        tiny_policy().save_pretrained(folder)
        module = PreferenceModule(
            PolicyConfig(folder, **policy),
            losses={"preference": WeightedDPOLoss(), "triplet": TripletLoss()},
            anchor=AnchorOptions(max_new_tokens=8, reuse_steps=2),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        )
        batches = torch.utils.data.DataLoader([tiny_batch()] * 8, batch_size=None)
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        }
        quiet["enable_model_summary"] = False
        trainer = Trainer(max_steps=8, precision=precision, callbacks=[Watch()], **quiet)
        trainer.fit(module, batches, batches)
    return _check(losses[-1] - losses[0], -1e-3)


def benchmark(tiny: bool, write: Callable[[Any], None] = lambda rows: None) -> dict[str, Any]:
    """The rows of the suite, round by round while there is time."""
    group = suite.GPU[0] if not tiny else suite.TINY_GPU
    started, rounds, slowest = time.monotonic(), 0, 0.0
    runs: suite.Runs = {name: [] for name in group.contestants}
    result: dict[str, Any] = {}
    limit = 0.0 if tiny else 0.9 * LIMITS["benchmark"]
    while rounds < 2 or time.monotonic() - started + slowest < limit:
        begun = time.monotonic()
        for name in group.contestants[:: 1 if rounds % 2 == 0 else -1]:
            # PyTorch cannot count what TRL's kernels do on a GPU.
            mode = "time" if CONTESTANTS[name].side == "trl" else "both"
            runs[name].append(suite.run(group.workload, name, group.steps, group.batches, mode))
            flops = {name: {"flops": None, **found[0]} for name, found in runs.items() if found}
            ready = [row for row in group.rows if row.ours in flops and row.peer in flops]
            pairs = {row: min(len(runs[row.ours]), len(runs[row.peer])) for row in ready}
            rows = [
                suite.summarise(row, group, {n: r[: pairs[row]] for n, r in runs.items()}, flops)
                for row in ready
            ]
            result = {"rows": rows, "runs": runs}
            write(result)
        rounds, slowest = rounds + 1, time.monotonic() - begun
    return result


def profile(contestant: str, tiny: bool) -> dict[str, Any]:
    """Where the time of one step goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    load = WORKLOADS["tiny" if tiny else "gpu_1b"]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    watch = profiler(activities=activities)
    times: list[float] = []

    def tick(loss: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) == 3:
            watch.__enter__()
        elif len(times) == 4:
            watch.__exit__(None, None, None)

    ours.train(load.prepare(suite.GPU[0].batches or 4), load, CONTESTANTS[contestant], 4, tick)
    events = watch.key_averages()
    busy = sum(event.self_device_time_total for event in events) / 1e6
    top = sorted(events, key=lambda event: -event.self_device_time_total)[:15]
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::_local_scalar_dense")
    return {
        "step_s": times[2] - times[1],  # without the profiler
        "device_busy_s": busy,
        "kernels_ms": {event.key[:90]: event.self_device_time_total / 1e3 for event in top},
        "waits_for_the_device": {event.key: event.count for event in events if event.key in waits},
    }


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "environment": environment,
    "correctness": correctness,
    "benchmark": benchmark,
    "profile_plain": functools.partial(profile, "plain_online_reference"),
    "profile_tidpo": functools.partial(profile, "tidpo"),
}


def run_part(name: str, target: Path, tiny: bool) -> None:
    """Run a part in its own process and write what it found, or why it failed, into ``target``."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--part", name]
    command += ["--output", str(target.parent), *(["--tiny"] if tiny else [])]
    started = time.monotonic()
    part = target.with_suffix(f".{name}.json")
    part.unlink(missing_ok=True)
    # A session of its own, so that what the part has started ends with it and frees the device.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=LIMITS[name])
        error = errors[-2000:] if process.returncode else None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        error = f"not done within {LIMITS[name]} s"
    found = json.loads(part.read_text()) if part.exists() else {}
    part.unlink(missing_ok=True)
    whole = json.loads(target.read_text()) if target.exists() else {}
    whole[name] = {"error": error, "seconds": time.monotonic() - started, **found}
    target.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {'done' if error is None else 'FAILED'} in {whole[name]['seconds']:.0f} s")
    if error is not None:
        print(error)


def main() -> None:
    """Run all parts, or one in this process; status 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run on a CPU")
    arguments = parser.parse_args()
    target = arguments.output / "gpu.json"
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        part = target.with_suffix(f".{arguments.part}.json")

        def write(found: dict[str, Any]) -> None:
            part.write_text(json.dumps(found), encoding="utf-8")

        if arguments.part == "benchmark":
            benchmark(arguments.tiny, write)
        else:
            write(PARTS[arguments.part](arguments.tiny))
        return
    target.unlink(missing_ok=True)
    for name in PARTS:
        run_part(name, target, arguments.tiny)
    whole = json.loads(target.read_text())
    failed = any(part["error"] for part in whole.values())
    raise SystemExit(int(failed or not whole["correctness"].get("passed")))


if __name__ == "__main__":
    main()
