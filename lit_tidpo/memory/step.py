"""One optimizer step of a preference module, run dry."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.memory.dry_run import DryRun
from lit_tidpo.memory.rows import longest_anchors
from lit_tidpo.models.kept_logps import KeptLogps
from lit_tidpo.models.loading import without_weights
from lit_tidpo.models.quirks.parts import vocabulary_size
from lit_tidpo.models.reference import FrozenModel, OtherModel
from lit_tidpo.modules.cached_reference import CachedReference
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.objective import Objective
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.structures import ResponseBatch, joined

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Held:
    """Bytes by what they are for, at the moment when they are the most.

    Attributes:
        passes: While models run forward and backward.
        update: While the optimizer steps.
    """

    passes: Counter[str]
    update: Counter[str]


class _AllKept(KeptLogps):
    """Knows the reference's log-probs of all rows."""

    def lookup(self, batch: ResponseBatch) -> Tensor:
        """Log-probs without numbers, ``[N, T]``."""
        return torch.zeros(batch.input_ids.shape)


def _stay(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
    """In the place of ``nn.Module.to``."""
    return module


class DrySteps:
    """Steps of a module without numbers: models of their configs alone, on no device at all.

    Args:
        module: A module whose models are not built yet; it is of no other use afterwards.
        precision: The Trainer's.
        accumulated: Batches of an optimizer step.
        device: Kind of device.

    Raises:
        InputError: If the precision is none that the module trains in, or a model is no more than
            its weights.
    """

    def __init__(
        self, module: PreferenceModule, precision: str, accumulated: int, device: str
    ) -> None:
        if precision not in _AUTOCAST:
            raise InputError(f"precision={precision!r}: expected one of {sorted(_AUTOCAST)}")
        self.module = module
        self.policy: nn.Module
        self._dtype = _AUTOCAST[precision]
        self._accumulated = accumulated
        self._dry = DryRun(device)
        self._build()

    def _build(self) -> None:
        module, kept = self.module, self.module.cached_reference
        # What it keeps would be found by a hash of weights.
        module.cached_reference = CachedReference(None, module.objective)
        with self._run(), without_weights():
            module.configure_model()
            self.policy = module.built_policy
            if kept.folder is not None:
                module.models.kept = _AllKept()
            if kept.replaces_runs:
                module.models.others["reference"] = _let_go()
            self._optimizer = module.configure_optimizers()["optimizer"]
            for parameter in self.trained:
                parameter.grad = torch.zeros_like(parameter)
            self._optimizer.step()
        self._dry.allocations.wide = vocabulary_size(self.policy)

    @contextmanager
    def _run(self) -> Iterator[None]:
        """Run dry; what has no content is not moved, as it is nowhere."""
        with self._dry, patch.object(nn.Module, "to", _stay), warnings.catch_warnings():
            # Copies of models look for data, and take its absence as it is.
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield

    @property
    def others(self) -> list[nn.Module]:
        """Models beside the policy."""
        return self.module.models.own[1:]

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def step(self, batch: ResponseBatch, with_anchors: bool = True) -> Held:
        """Run a step as one that comes after others, whose gradients and states are still there.

        Args:
            batch: Rows.
            with_anchors: Whether losses that ask for anchors are computed.
        """
        gc.collect()  # what an earlier step left in cycles
        allocations = self._dry.allocations
        start = allocations.mark()
        with self._run():
            autocast = (
                torch.autocast(self._dry.device.type, self._dtype) if self._dtype else nullcontext()
            )
            with autocast:
                loss = self._loss(batch, with_anchors)
            if self._accumulated == 1:
                self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            del loss
            end = allocations.mark()
            self._optimizer.step()
        self._name()
        return Held(allocations.peak(start, end), allocations.peak(end))

    def _loss(self, batch: ResponseBatch, with_anchors: bool) -> Tensor:
        module, objective = self.module, self.module.objective
        if not with_anchors:
            objective = _without_anchors(objective)
        anchors = known = None
        if "anchor" in objective.needs:
            anchors = self._anchors(batch)
        if module.token_weights.are_precomputed and "weights" in objective.needs:
            known = {"weights": torch.zeros(batch.input_ids.shape)}
        return objective.evaluate(module.models, batch, anchors, known).loss.mean()

    def _anchors(self, batch: ResponseBatch) -> ResponseBatch:
        """Sample, for what that takes, and take rows that are as long as anchors can be."""
        options, window = self.module.anchor, self._accumulated * self.module.anchor.reuse_steps
        rows = batch.role(batch.roles[0])
        if options.reuse_steps > 1:
            rows = joined([rows] * window)
        Generation(options).sample(self.policy, rows)
        return longest_anchors(batch, options)

    def _name(self) -> None:
        allocations, model = self._dry.allocations, self.policy
        allocations.name("parameters", [*self.module.parameters(), *model.buffers()])
        for other in self.others:
            allocations.name("reference", [*other.parameters(), *other.buffers()])
        allocations.name("gradients", [p.grad for p in self.trained if p.grad is not None])
        states = [
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        allocations.name("optimizer", states)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of all that is trained."""
        return sum(p.numel() * p.element_size() for p in self.trained)


def asks_for_anchors(module: PreferenceModule) -> bool:
    """Whether the step can be run with and without the losses that ask for anchors."""
    asking = ["anchor" in loss.needs for loss in module.objective.losses.values()]
    return any(asking) and not all(asking)


def _without_anchors(objective: Objective) -> Objective:
    losses = {k: v for k, v in objective.losses.items() if "anchor" not in v.needs}
    factors = {name: objective.factors[name] for name in losses}
    models = tuple(objective.models - {"policy", "reference"})
    return Objective(objective.importance, objective.scale, losses, factors, models)


def _let_go() -> OtherModel:
    """A reference that has left the memory."""
    model = FrozenModel(nn.Module())
    model.model = None
    return model
