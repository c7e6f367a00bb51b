"""What an estimator costs beyond the forward that the loss needs anyway."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.evidence.defects.rows import DefectRow, as_batch
from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.models.forward import run_models
from lit_tidpo.models.reference import Reference
from lit_tidpo.structures import Forward

PLAIN = frozenset({"reference.logps"})
"""What plain DPO asks for."""


def costs(
    policy: nn.Module,
    reference: nn.Module,
    rows: Sequence[DefectRow],
    estimators: Mapping[str, ImportanceEstimator],
    repeats: int,
) -> dict[str, dict[str, float]]:
    """Seconds of one core and floating-point operations for each pair.

    Args:
        policy: A policy whose parameters take gradients, as in training.
        reference: The model of the log-ratios.
        rows: One batch.
        estimators: Estimators by name.
        repeats: Runs, of which the fastest counts.

    Returns:
        By estimator, and for the ``plain`` forward of policy and reference: ``cpu_seconds`` and
        ``gflop`` per pair; those of the estimators are beyond the plain forward.
    """
    batch, frozen = as_batch(rows, ("chosen", "rejected")), Reference(reference)

    def forward(estimator: ImportanceEstimator | None) -> Forward:
        needs = PLAIN if estimator is None else PLAIN | estimator.needs
        return run_models(policy, frozen, batch, needs)

    def operations(estimator: ImportanceEstimator | None) -> float:
        with _Operations() as counter:
            traces = forward(estimator)
            if estimator is not None:
                estimator.scores(traces)
        return counter.total / 1e9 / len(rows)

    def seconds(work: Callable[[], object]) -> float:
        return min(_seconds(work) for _ in range(repeats)) / len(rows)

    plain = {"cpu_seconds": seconds(partial(forward, None)), "gflop": operations(None)}
    result = {"plain": plain}
    for name, estimator in estimators.items():
        traces = forward(estimator)
        cost = seconds(partial(estimator.scores, traces))
        if not estimator.needs <= PLAIN:  # otherwise its forward is the plain one
            # The plain one anew, beside it: a process grows faster and slower.
            cost += seconds(partial(forward, estimator)) - seconds(partial(forward, None))
        result[name] = {
            "cpu_seconds": cost,
            "gflop": operations(estimator) - plain["gflop"],
        }
    return result


class _Operations(TorchDispatchMode):
    """Counts operations; torch's FlopCounterMode refuses gradients for leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
