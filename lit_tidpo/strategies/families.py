"""Which family a strategy is of."""

from __future__ import annotations

from lightning.pytorch.strategies import Strategy

from lit_tidpo.errors import InputError
from lit_tidpo.strategies.family import DataParallel, OneDevice, StrategyFamily
from lit_tidpo.strategies.fully_sharded import FullySharded
from lit_tidpo.strategies.model_parallel import ModelParallel
from lit_tidpo.strategies.zero import Zero

# DeepSpeed's is a DDPStrategy, too: the more special come first.
FAMILIES: tuple[type[StrategyFamily], ...] = (
    Zero,
    FullySharded,
    ModelParallel,
    DataParallel,
    OneDevice,
)


def family_of(strategy: Strategy) -> StrategyFamily:
    """What is known of a strategy.

    Raises:
        InputError: If nothing is.
    """
    for family in FAMILIES:
        if isinstance(strategy, family.strategies):
            return family(strategy)
    raise InputError(
        f"strategy {type(strategy).__name__} is not supported: attribution and the frozen "
        "reference are proven for one device, ddp, model_parallel (FSDP2, tensor parallelism), "
        "fsdp and deepspeed; docs/strategies.md has what each can do"
    )
