"""Activations that wait for the backward pass in the memory of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_Kept = tuple[torch.device | None, Tensor]


class _Offload:
    """Hooks around a model's forward pass.

    Copied with the model, so that a frozen copy has hooks of its own.
    """

    def __init__(self) -> None:
        self._open: list[saved_tensors_hooks] = []
        self._weights: set[int] = set()

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Before the pass."""
        self._weights = {each.untyped_storage().data_ptr() for each in module.parameters()}
        self._open.append(saved_tensors_hooks(self._pack, _unpack))
        self._open[-1].__enter__()

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """After the pass, or its failure."""
        self._open.pop().__exit__()

    def _pack(self, tensor: Tensor) -> _Kept:
        # The graph holds weights, too, which stay on the device anyway.
        if tensor.untyped_storage().data_ptr() in self._weights:
            return None, tensor
        there = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, there.copy_(tensor, non_blocking=tensor.is_cuda)


def _unpack(kept: _Kept) -> Tensor:
    device, tensor = kept
    return tensor if device is None else tensor.to(device, non_blocking=True)


def offload_activations(model: nn.Module) -> None:
    """Keep what a model's forward pass leaves for the backward pass on the CPU; changed in place.

    As :class:`torch.autograd.graph.save_on_cpu`, which would copy the weights, too.
    """
    hooks = _Offload()
    model.register_forward_pre_hook(hooks.enter)
    model.register_forward_hook(hooks.leave, always_call=True)
