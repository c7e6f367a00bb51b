"""Pairs with a marked defect, and what estimators give and cost: the study's use of the package."""

from __future__ import annotations

import dataclasses
import random
import re
import time
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.evidence.data import SIDES, Row, marks, pair_tokenizer, rows_of
from lit_tidpo.data.collation import PairCollator
from lit_tidpo.functional.importance import scale_weights
from lit_tidpo.importance.base import ImportanceEstimator, checked_scores
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.structures import ResponseBatch, Results

SOURCE, START, MAX_LENGTH, BATCH = "builtin:stdlib_defects", "builtin:policy", 512, 8
PLAIN = frozenset({"reference.logps"})  # what plain DPO asks for
Scores = dict[str, list[Tensor]]  # by estimator, of each row's response tokens
Estimators = Mapping[str, ImportanceEstimator]


def made(
    options: Mapping[str, dict[str, Any]], **init_args: dict[str, Any]
) -> dict[str, ImportanceEstimator]:
    """Estimators by name, from their ``class_path`` and ``init_args``, which may hold others."""
    return {
        name: _made({"init_args": init_args.get(name, {}), **each})
        for name, each in options.items()
    }


def _made(value: Any) -> Any:
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    arguments = {name: _made(each) for name, each in value.get("init_args", {}).items()}
    return instantiate_class((), {**value, "init_args": arguments})


@dataclass(frozen=True)
class DefectRow:
    """One pair of the data set, seen from its rejected response."""

    fields: Row
    ids: dict[str, Any]  # what the package's tokenizer makes of it
    places: list[tuple[int, int]]  # of the rejected tokens, in characters of the response
    marked: Tensor  # True at rejected tokens that overlap the defect

    @property
    def module(self) -> str:
        """Top-level module that the function is from."""
        return str(self.fields["module"]).partition(".")[0]

    @property
    def rejected(self) -> list[int]:
        """Tokens of the rejected response, its end included."""
        return list(self.ids["rejected_ids"])


def held_out_rows(
    split: str,
    limit: int | None,
    source: str = SOURCE,
    tokenizer: str = START,
    max_length: int = MAX_LENGTH,
) -> list[DefectRow]:
    """Pairs of a split, in random order; no module is in two splits."""
    rows = rows_of(source, split)
    random.Random(0).shuffle(rows)
    return list(islice(defect_rows(rows, tokenizer, max_length), limit))


def defect_rows(
    rows: Iterable[Row], tokenizer: str = START, max_length: int = MAX_LENGTH
) -> Iterator[DefectRow]:
    """Tokenise pairs; those that would have to be cut are left out."""
    pairs = pair_tokenizer(tokenizer, max_length)
    for fields in rows:
        ids = pairs(fields, 0)
        if not ids["problem"] and not any(ids[name] for name in ids if name.endswith("truncated")):
            places, marked = marks(fields, "rejected", pairs)
            yield DefectRow(fields, ids, places, torch.tensor(marked))


def paraphrased(rows: Sequence[DefectRow]) -> list[tuple[DefectRow, DefectRow]]:
    """Rows and the same with indents halved and blank lines put in; its ``marked`` is void."""
    indent, both = re.compile(r"\n( +)"), []
    for row in rows:
        sides = [(side, row.fields[side]) for side in SIDES]
        wider = {s: indent.sub(lambda m: "\n\n" + m[1][: len(m[1]) // 2], t) for s, t in sides}
        both += [(row, other) for other in defect_rows([row.fields | wider])]
    return both


def frozen_policy(path: str) -> nn.Module:
    """A policy that hands out attention; parameters without gradients make attribution cheaper."""
    policy = build_policy(PolicyConfig(path=path, attn_implementation="eager"))
    return policy.requires_grad_(False).eval()


def score_rows(
    policy: nn.Module,
    reference: nn.Module,
    rows: Sequence[DefectRow],
    estimators: Estimators,
    at_once: int = BATCH,
) -> Scores:
    """Scores of the rejected responses by all estimators, from one forward of each batch."""
    needs = frozenset().union(*(estimator.needs for estimator in estimators.values()))
    paired = any(estimator.looks_at == "group" for estimator in estimators.values())
    models = Models(policy, {"reference": FrozenModel(reference)})
    scores: Scores = {name: [torch.empty(0)] * len(rows) for name in estimators}
    # Rows of like length side by side: less is padding.
    lengths = [len(row.ids["prompt_ids"]) + len(row.rejected) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    for start in range(0, len(order), at_once):
        places = order[start : start + at_once]
        batch = _batch([rows[place] for place in places])
        if not paired:
            batch = batch.role("rejected")
        (results,) = models.run([(batch, needs)])
        for name, estimator in estimators.items():
            values = _responses(estimator.scores(results).detach(), batch)[-len(places) :]
            for place, value in zip(places, values, strict=True):
                scores[name][place] = value
    return scores


def weigh_rows(
    scores: Sequence[Tensor], rows: Sequence[DefectRow], weighting: ImportanceEstimator
) -> Sequence[Tensor]:
    """Final weights of scored responses, by an estimator around the supplied scores."""
    batch = _batch(rows).role("rejected")
    spread = torch.zeros(batch.input_ids.shape)
    spread[batch.response_mask] = torch.cat([*scores]).float()
    results = Results(dataclasses.replace(batch, supplied_weights=spread), {})
    weights = scale_weights(checked_scores(weighting, results), results.mask)
    return _responses(weights, batch)


def _batch(rows: Sequence[DefectRow]) -> ResponseBatch:
    return PairCollator()([row.ids for row in rows])


def _responses(values: Tensor, batch: ResponseBatch) -> Sequence[Tensor]:
    """Values of each row's response tokens, from ``[N, T]``."""
    return values[batch.response_mask].split((batch.lengths - batch.prompt_lengths).tolist())


def costs(
    reference: nn.Module, rows: Sequence[DefectRow], estimators: Estimators, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of one core, the fastest of some runs, and billions of operations for each pair.

    Returns:
        By estimator ``cpu_seconds`` and ``gflop`` beyond the ``plain`` forward of both models.
    """
    batch, policy = _batch(rows), frozen_policy(START).requires_grad_(True)  # as in training
    models = Models(policy, {"reference": FrozenModel(reference)})

    def forward(needs: frozenset[str] = PLAIN) -> Results:
        return models.run([(batch, PLAIN | needs)])[0]

    def seconds(work: Callable[[], object]) -> float:
        times = timeit.repeat(work, timer=time.process_time, number=1, repeat=repeats)
        return min(times) / len(rows)

    with _Operations() as counter:
        forward()
    plain = {"cpu_seconds": seconds(forward), "gflop": counter.total / 1e9 / len(rows)}
    found = {"plain": plain}
    for name, estimator in estimators.items():
        with _Operations() as counter:
            results = forward(estimator.needs)
            estimator.scores(results)
        cost = seconds(partial(estimator.scores, results))
        if not estimator.needs <= PLAIN:  # otherwise its forward is the plain one
            # The plain one anew, beside it: a process grows faster and slower.
            cost += seconds(partial(forward, estimator.needs)) - seconds(forward)
        gflop = counter.total / 1e9 / len(rows) - plain["gflop"]
        found[name] = {"cpu_seconds": cost, "gflop": gflop}
    return found


class _Operations(TorchDispatchMode):
    """Counts operations; torch's FlopCounterMode refuses gradients for leaves."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result
