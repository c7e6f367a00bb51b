"""Sharding of models over devices (FSDP2)."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a language model over the data-parallel devices, layer by layer.

    Args:
        model: A model of transformers, changed in place.
        mesh: Mesh with the dimension ``data_parallel``.
    """
    devices = mesh["data_parallel"]
    layers = getattr(model, "_no_split_modules", None) or ()
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=devices)
    fully_shard(model, mesh=devices)
