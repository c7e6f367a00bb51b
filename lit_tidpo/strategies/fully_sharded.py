"""``FSDPStrategy``: the first generation of FSDP, in which Lightning wraps the whole module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.optim import Optimizer

from lit_tidpo.errors import InputError
from lit_tidpo.models.sharding import decoder_layers
from lit_tidpo.strategies.family import Run, StrategyFamily, check_unbuilt
from lit_tidpo.strategies.whole_steps import UNSHARED, check_whole_steps


class FullySharded(StrategyFamily):
    """Layers gathered when they run; what they are gathered for is one backward pass.

    A second one, which attribution from the training forward would be, finds them gone. So
    gradients for the input come from a forward pass of their own.
    """

    strategies = (FSDPStrategy,)
    in_step = True
    attributes_apart = True
    unshared_prompts = UNSHARED
    folders = "fsdp"

    def settle(self, processes: int) -> None:
        """Refuse one process, whose optimizer PyTorch cannot save.

        Raises:
            InputError: If there is one only.
        """
        if processes == 1:
            raise InputError(
                "strategy fsdp on one process shares nothing out and writes no checkpoint: leave "
                "the strategy out, or set trainer.devices to 2 or more"
            )

    def check(self, run: Run) -> None:
        """Refuse what FSDP1 would make wrong; see :meth:`StrategyFamily.check`."""
        check_whole_steps(run, "fsdp")
        super().check(run)
        if run.policy is None or not _is_wrapped(run.policy):
            check_unbuilt(run, "fsdp")
        if run.attributes and run.accumulates:
            raise InputError(
                "trainer.accumulate_grad_batches with an importance made of gradients: strategy "
                "fsdp takes the gradients of one batch for those of the next one's attribution; "
                "set 1 and a larger data.batch_size, or take configs/strategies/fsdp2.yaml"
            )
        if not self.strategy.kwargs.get("use_orig_params"):
            raise InputError(
                "strategy fsdp with use_orig_params=false hides the policy's parameters from its "
                "optimizer: leave it out"
            )

    def run_whole(
        self, module: LightningModule, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Call a method through the wrapper; see :meth:`StrategyFamily.run_whole`.

        It watches over the tensors that come out of it: a gradient asked of them outside starts
        and ends one backward pass, and one asked inside would not end.
        """
        redirect, name = self.strategy._forward_redirection, function.__name__
        return redirect(self.strategy.model, module, name, *arguments)

    def shard_policy(self, policy: nn.Module) -> None:
        """Tell Lightning, which wraps the module, what the layers are."""
        if layers := _layer_classes(policy):
            self.strategy.kwargs.setdefault("auto_wrap_policy", ModuleWrapPolicy(layers))

    def shard_frozen(self, model: nn.Module) -> nn.Module:
        """Wrap a model of its own, which Lightning does not see."""
        layers = _layer_classes(model)
        wrapped: nn.Module = FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy(layers) if layers else None,
            sharding_strategy=self.strategy.sharding_strategy,
            device_id=self.strategy.root_device,
            device_mesh=self.strategy.kwargs.get("device_mesh"),
            use_orig_params=True,
        )
        return wrapped

    def clip(
        self, parameters: Iterable[nn.Parameter], optimizer: Optimizer, limit: float, kind: str
    ) -> None:
        """Clip by the norm over all ranks, which the wrapper alone knows."""
        if kind == "value":
            torch.nn.utils.clip_grad_value_(parameters, limit)
        else:
            self.strategy.model.clip_grad_norm_(limit)

    def after_step(self, optimizer: Optimizer) -> None:
        """Let gradients go, which the backward pass of an attribution would take for its own."""
        optimizer.zero_grad(set_to_none=True)


def _is_wrapped(policy: nn.Module) -> bool:
    return any(isinstance(module, FullyShardedDataParallel) for module in policy.modules())


def _layer_classes(model: nn.Module) -> set[type[nn.Module]]:
    return {type(layer) for layer in decoder_layers(model)}
