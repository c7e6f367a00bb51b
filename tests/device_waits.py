"""Counts what would make a training step wait for a GPU, on a machine without one.

A stand-in: what was put on the device (parameters, the batch), and all that is computed of it, is
told from what is on the host, and whatever the host asks of it is noted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACKAGE = str(Path(__file__).parents[1] / "lit_tidpo")
aten = torch.ops.aten
# Operators whose result, or its shape, the host has to know.
ASKS = {
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_scatter_backward.default,
    aten.masked_select.default,
    aten.multinomial.default,  # looks whether they are probabilities
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
FETCHES = {Tensor.cpu, Tensor.numpy, Tensor.tolist}
MAKES = {torch.tensor, torch.as_tensor}


class DeviceWaits:
    """Counts waits by who asks.

    Args:
        package: Folder of the code that counts as our own.

    Attributes:
        own: Those of this package, by ``FILE:LINE what``.
        others: Those of other libraries, also where this package called them.
    """

    def __init__(self, package: str = PACKAGE) -> None:
        self._package = package
        self.own: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._storages: dict[int, object] = {}  # held, so that no other gets its address
        self._modes = (_Functions(self), _Operators(self))

    def __enter__(self) -> DeviceWaits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def put(self, values: object) -> None:
        """Take all tensors among these for ones on the device."""
        for each in tree_leaves(values):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self._storages[storage._cdata] = storage

    def holds(self, values: object) -> bool:
        """Whether a tensor among these is on the device."""
        if isinstance(values, Tensor):
            return values.untyped_storage()._cdata in self._storages
        if isinstance(values, dict):
            values = values.values()
        elif not isinstance(values, (tuple, list)):
            return False
        return any(map(self.holds, values))

    def note(self, what: str, libraries: bool = True) -> None:
        """Count a wait for whoever called torch; of other libraries only if that is said.

        Those copy to the device without waiting, too, but not where that is a CPU.
        """
        frame: Any = sys._getframe(1)
        while frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename:
            frame = frame.f_back
        file = frame.f_code.co_filename
        # What runs backwards is ours, too: Lightning only starts it.
        ours = file.startswith(self._package) or frame.f_code.co_name == "backward"
        if ours or libraries:
            (self.own if ours else self.others)[f"{file}:{frame.f_lineno} {what}"] += 1


class _Operators(TorchDispatchMode):
    """Sees every operator, those of the backward pass, too."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.waits.holds((args, kwargs)):
            return func(*args, **kwargs)
        if func in ASKS or _depends_on_values(func, args, kwargs):
            self.waits.note(str(func))
        result = func(*args, **kwargs)
        if func is not aten._local_scalar_dense.default:
            self.waits.put(result)
        return result


def _depends_on_values(func, args, kwargs) -> bool:
    if func in INDEXES:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None


class _Functions(TorchFunctionMode):
    """Sees copies between host and device, which are none on a CPU."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FETCHES and self.waits.holds(args[0]):
            self.waits.note(func.__name__)
            with torch.utils._python_dispatch._disable_current_modes():
                result = func(*args, **kwargs)
                return result.clone() if isinstance(result, Tensor) else result
        if self._is_moved(func, args, kwargs):
            self.waits.note(func.__name__, libraries=False)
        return func(*args, **kwargs)

    def _is_moved(self, func, args, kwargs) -> bool:
        """Whether values of the host are copied to a device, and waited for."""
        if func is Tensor.to and not kwargs.get("non_blocking"):
            to_device = any(isinstance(each, torch.device) for each in (*args, *kwargs.values()))
            return to_device and not self.waits.holds(args[0])
        return func is Tensor.new_tensor or (func in MAKES and kwargs.get("device") is not None)


class CountsWaits(Callback):
    """Counts the waits of each step of a PreferenceModule, from its batch to its end.

    Attributes:
        steps: One count for each step.
    """

    def __init__(self) -> None:
        self.steps: list[DeviceWaits] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        waits = DeviceWaits()
        models = [each for each in module.models.own if each is not None]
        waits.put([[*model.parameters(), *model.buffers()] for model in (module, *models)])
        waits.put(list(module.train_means.metric_state.values()))
        for each in (batch, *batch.upcoming):
            host = each.host
            for field in dataclasses.fields(each):
                value = getattr(each, field.name)
                if isinstance(value, Tensor):
                    setattr(each, field.name, value.clone())
                    waits.put(getattr(each, field.name))
            each.known_as(host)
        self.steps.append(waits.__enter__())

    def on_train_batch_end(self, *_) -> None:
        self.steps[-1].__exit__(None, None, None)
