"""Measure one contestant on one workload in this process: ``python -m benchmarks.worker``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import resource
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import WORKLOADS
from lit_tidpo.models import varlen

WARM_UP = 2


def _attention_flops(query: Any, key: Any, is_causal: bool, products: int) -> int:
    """Operations of so many products of scores' size; the causal kernels do half of them."""
    *rows, length, size = query
    return products * math.prod(rows) * length * key[-2] * size * (1 if is_causal else 2)


def _forward_flops(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    is_causal = rest[1] if len(rest) > 1 else options.get("is_causal", False)
    return _attention_flops(query, key, is_causal, 2)


def _backward_flops(grad: Any, query: Any, key: Any, *rest: Any, **options: Any) -> int:
    return _attention_flops(query, key, rest[4], 5)


def _varlen_flops(
    query: Any, key_starts: Any, query_starts: Any, products: int, is_causal: bool
) -> int:
    """The same row by row; the first token of a row behind a prompt sees the prompt and itself."""
    queries, keys = query_starts.diff().tolist(), key_starts.diff().tolist()
    seen = sum(
        q * k - (q * (q - 1) // 2 if is_causal else 0) for q, k in zip(queries, keys, strict=True)
    )
    return 2 * products * seen * query.shape[1] * query.shape[2]


def _varlen_forward(
    query: Any, key: Any, value: Any, starts: Any, key_starts: Any, *rest: Any, **options: Any
) -> int:
    # After the starts: widths, causal.
    return _varlen_flops(query, key_starts, starts, 2, rest[2])


def _varlen_backward(grad: Any, query: Any, *rest: Any, **options: Any) -> int:
    # After query: key, value, output, log-sum-exp, starts of queries and of keys, widths, causal.
    return _varlen_flops(query, rest[5], rest[4], 5, rest[8])


# PyTorch counts no kernel of CPUs, and none over rows side by side.
ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}
if varlen.varlen_attn is not None:
    for formula in (_varlen_forward, _varlen_backward):
        formula._get_raw = True  # type: ignore[attr-defined] # tensors, instead of their shapes
    ATTENTION_FLOPS |= {
        torch.ops.torch_attn._varlen_attn: _varlen_forward,
        torch.ops.torch_attn._varlen_attn_backward: _varlen_backward,
    }


class Clock:
    """Times of steps.

    Args:
        steps: Number of steps.
        flops: Whether to count the operations of the measured steps instead of timing them.
        extra: Number of steps after the timed ones, of which the operations are counted.
    """

    def __init__(self, steps: int, flops: bool, extra: int = 0) -> None:
        self.times: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.steps, self.flops = steps, flops
        self.counter: Any = None
        self.extra = extra

    def tick(self, loss: Any) -> None:
        """Note the end of a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append((time.process_time(), time.perf_counter()))
        self.losses.append(0.0 if loss is None else float(loss))
        if len(self.times) == (self.steps if self.extra else WARM_UP if self.flops else -1):
            self.counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
            self.counter.__enter__()
        elif self.counter and len(self.times) == self.steps + self.extra:
            self.counter.__exit__(None, None, None)

    def stop(self) -> None:
        """Count no further, wherever the training stopped."""
        if self.counter is not None and len(self.times) < self.steps + self.extra:
            self.counter.__exit__(None, None, None)

    def result(self) -> dict[str, float]:
        """Means over the measured steps, and the median of their times as ``typical_s``."""
        if self.flops:
            return {"flops": self.counter.get_total_flops() / (self.steps - WARM_UP)}
        measured = self.times[WARM_UP - 1 : self.steps]
        steps = [
            [after - before for before, after in zip(one, other, strict=True)]
            for one, other in itertools.pairwise(measured)
        ]
        cpu, wall = (statistics.mean(column) for column in zip(*steps, strict=True))
        counted = {"flops": self.counter.get_total_flops() / self.extra} if self.extra else {}
        # Half the steps are not the ones that compile something for the first time.
        typical = statistics.median(step[1] for step in steps)
        return {"cpu_s": cpu, "wall_s": wall, "typical_s": typical, **counted}


def peak_memory() -> int:
    """Bytes: allocated on the GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(precision: str) -> int | None:
    """Operations that the GPU's maker promises for each second; None where that is not known."""
    if not torch.cuda.is_available():
        return None
    if precision == "bf16" and "H200" in torch.cuda.get_device_name():
        # Without sparsity. Lightning knows other names of it only, and counts them with sparsity.
        return 989_400_000_000_000
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return get_available_flops(torch.device("cuda"), dtype)


def measure(
    workload: str, contestant: str, steps: int, batches: int | None, mode: str
) -> dict[str, Any]:
    """Train and measure.

    Args:
        workload: A key of ``WORKLOADS``.
        contestant: A key of ``CONTESTANTS``.
        steps: Optimizer steps, the warm-up included.
        batches: Batches in an epoch; None has as many as steps.
        mode: ``time``, ``flops`` or ``losses``; ``both`` times steps and counts those of an epoch
            more: batches differ in length, so one alone does not tell the share of the peak.

    Returns:
        The figures, the losses and what was run.
    """
    load, entry = WORKLOADS[workload], CONTESTANTS[contestant]
    batches = batches or steps
    folder = load.prepare(batches * entry.devices)
    clock = Clock(steps, mode == "flops", extra=batches if mode == "both" else 0)
    steps += clock.extra
    losses = None
    try:
        if entry.side == "trl":
            from benchmarks import theirs

            losses = theirs.train(folder, load, entry, steps, clock.tick, log=mode == "losses")
        else:
            from benchmarks import naive, ours

            side = ours if entry.side == "ours" else naive
            side.train(folder, load, entry, steps, clock.tick)
    finally:
        clock.stop()
    return {
        "workload": dataclasses.asdict(load),
        "contestant": contestant,
        **clock.result(),
        "useful_tokens": load.useful_tokens(folder, range(WARM_UP, clock.steps)),
        "peak_flops": peak_flops(load.precision),
        "memory": peak_memory(),
        "losses": losses or clock.losses,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "trl", "lightning", "lit-tidpo")
        },
    }


def main() -> None:
    """Print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int)
    parser.add_argument("--mode", choices=["time", "flops", "losses", "both"], default="time")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result = measure(**vars(arguments))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(json.dumps(result))


if __name__ == "__main__":
    main()
