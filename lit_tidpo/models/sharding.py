"""Sharding of models over devices (FSDP2)."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lit_tidpo.errors import InputError


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` has been here."""
    return isinstance(model, FSDPModule)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a language model over the data-parallel devices, layer by layer.

    Args:
        model: A model of transformers, changed in place.
        mesh: Mesh with the dimensions ``data_parallel`` and ``tensor_parallel``.

    Raises:
        InputError: If layers are to be split, too: only whole layers are sharded.
    """
    split = mesh["tensor_parallel"].size()
    if split > 1:
        raise InputError(f"tensor_parallel_size={split} is not supported: expected 1")
    devices = mesh["data_parallel"]
    layers = getattr(model, "_no_split_modules", None) or ()
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=devices)
    fully_shard(model, mesh=devices)
