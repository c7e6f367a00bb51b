"""What the devices of a strategy share of a step's memory, and what a strategy adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.models.sharding import decoder_layers

SHARDED = "gathered"
"""What a device holds of others' shards while it computes a layer."""


@dataclass(frozen=True)
class Sharing:
    """What is divided by the number of devices; the rest is on each of them.

    Attributes:
        parameters: Those of policy and reference.
        gradients: Those of the policy.
        optimizer: The optimizer's state.
        buckets: Whether gradients are copied to buckets, in which they are averaged.
    """

    parameters: bool = False
    gradients: bool = False
    optimizer: bool = False
    buckets: bool = False


_DDP = Sharing(buckets=True)
_ALL = Sharing(parameters=True, gradients=True, optimizer=True)
SHARING = {
    "auto": _DDP,
    "ddp": _DDP,
    "ddp_find_unused_parameters_true": _DDP,
    "fsdp": _ALL,
    "fsdp2": _ALL,
    "model_parallel": _ALL,
    "deepspeed_stage_1": Sharing(optimizer=True),
    "deepspeed": Sharing(gradients=True, optimizer=True),
    "deepspeed_stage_2": Sharing(gradients=True, optimizer=True),
    "deepspeed_stage_3": _ALL,
}
"""By the name of a strategy (ZeRO, arXiv 1910.02054, for the stages)."""


def sharing(strategy: str, devices: int) -> Sharing:
    """What so many devices share.

    Args:
        strategy: A key of ``SHARING``.
        devices: Number of devices.

    Raises:
        InputError: If the strategy is not known.
    """
    if strategy not in SHARING:
        raise InputError(f"strategy={strategy!r}: expected one of {sorted(SHARING)}")
    return SHARING[strategy] if devices > 1 else Sharing()


def gathered(model: nn.Module, trains: bool) -> int:
    """Bytes of whole layers that a device holds beside its shards of a model.

    What is in no layer (embeddings, output layer) is whole from its forward to the end of the
    backward pass. Of the layers, the one at work and the one that is fetched meanwhile are whole,
    and the latter is twice there while it is taken out of the buffer it came in. In the backward
    pass whole gradients of what is outside and of one layer come with them, and of one more layer
    that is being averaged.

    Args:
        model: Whole.
        trains: Whether it has a backward pass.
    """
    layers = decoder_layers(model)
    sizes = [_bytes(layer.parameters()) for layer in layers] or [0]
    trained = [_bytes(p for p in layer.parameters() if p.requires_grad) for layer in layers] or [0]
    outside = _bytes(model.parameters()) - sum(sizes)
    if not trains:
        return outside + 3 * max(sizes)
    whole = _bytes(p for p in model.parameters() if p.requires_grad)
    return outside + 3 * max(sizes) + whole - sum(trained) + 2 * max(trained)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
