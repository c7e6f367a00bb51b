"""Models whose weights are shared out over ranks."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold parts of its weights, so that they can only run it together."""
    if any(isinstance(each, (FSDPModule, FullyShardedDataParallel)) for each in model.modules()):
        return True
    # The second is what ZeRO-3 marks its parameters by.
    return any(isinstance(each, DTensor) or hasattr(each, "ds_id") for each in model.parameters())


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers says are to be kept whole."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]
