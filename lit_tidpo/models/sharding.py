"""What strategies of Lightning do to models, and which of them are supported.

Every fact about a strategy that the rest of the package goes by stands here.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins import DoublePrecision, HalfPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lit_tidpo.errors import InputError

_PROVEN = (DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy)


def check_strategy(
    strategy: Strategy, precision: Any, mesh: DeviceMesh | None, policy: nn.Module | None
) -> None:
    """Refuse what would make gradients or attributions wrong, or is not proven to be right.

    Args:
        strategy: The Trainer's strategy.
        precision: The Trainer's precision plugin.
        mesh: Devices to shard models over, if the strategy has any.
        policy: The policy, where it is there already.

    Raises:
        InputError: If they cannot serve.
    """
    if mesh is not None and policy is not None and not is_sharded(policy):
        raise InputError(
            "strategy model_parallel shards a policy when it is built, and this one is there "
            "already: let the Trainer build it from policy.path, or use strategy=ddp"
        )
    if not isinstance(strategy, _PROVEN) or isinstance(strategy, DeepSpeedStrategy):
        raise InputError(
            f"strategy {type(strategy).__name__} is not supported yet: gradient attribution "
            "and the frozen reference are proven for one device, ddp and model_parallel (FSDP2)"
        )
    if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
        raise InputError(
            f"strategy ddp_{strategy._start_method} returns a module without its trained "
            "policy to the parent process: use strategy=ddp"
        )
    if isinstance(precision, (DoublePrecision, HalfPrecision)):
        raise InputError(
            f"precision={precision.precision} would cast the policy, its positions included, "
            "but not the reference: set policy.dtype, or use precision=bf16-mixed"
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` has been here, so that ranks can only run it together."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


UNSHARED_PROMPTS = "a sharded layer is gathered for its output, not for what prompts leave"
"""Why a sharded model cannot compute a prompt once for several responses."""


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers says are to be kept whole."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]


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
        raise InputError(
            f"tensor_parallel_size={split} is not supported: set 1 in the strategy's init_args, as "
            "configs/strategies/fsdp2.yaml does"
        )
    devices = mesh["data_parallel"]
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=devices)
    fully_shard(model, mesh=devices)
