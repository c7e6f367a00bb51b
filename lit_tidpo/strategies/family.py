"""What the modules ask of a strategy, and what holds for those that share no weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import nn
from torch.optim import Optimizer

from lit_tidpo.errors import InputError
from lit_tidpo.models import liger
from lit_tidpo.models.checkpoint_io import Writer, writer_of
from lit_tidpo.models.policy import PolicyConfig

_KEEPING_WEIGHTS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")
"""Precisions that leave layers and weights as they are, and their short names."""


@dataclass(frozen=True)
class Run:
    """What a strategy may not be able to serve.

    Attributes:
        config: How the policy is made.
        precision: The Trainer's precision plugin.
        policy: The policy, where it is there already.
        needs: What losses and importance ask of models.
        attributes: Whether gradients for the input embeddings are taken in training.
        trains_attribution: Whether the loss has a part in whatever is made of those gradients: an
            importance that is learned, or a loss that takes them itself.
        precomputes: Whether the policy is asked for weights before the first step.
        skips_steps: Whether steps that are not finite are left out.
        accumulates: Whether several batches make an optimizer step.
        fits: Whether it trains.
        learns: Whether components have parameters of their own, which are trained.
    """

    config: PolicyConfig
    precision: Any
    policy: nn.Module | None
    needs: frozenset[str] = frozenset()
    attributes: bool = False
    trains_attribution: bool = False
    precomputes: bool = False
    skips_steps: bool = False
    accumulates: bool = False
    fits: bool = True
    learns: bool = False


class StrategyFamily:
    """Strategies of one kind; by default those that leave each rank a whole model.

    Args:
        strategy: The Trainer's.

    Attributes:
        strategies: Classes of Lightning that it is of.
        in_step: Whether ranks run models together, so that all have to take the same branches.
        attributes_apart: Whether a gradient for the input embeddings needs a forward pass of its
            own, as the graph of the training forward serves one backward pass only.
        unshared_prompts: Why a prompt cannot be computed once for several responses, if so.
        accumulates: Whether it accumulates batches by itself, each counting alike, and hands each
            to the module as if it were a step.
        folders: Whose folders its checkpoints are, if they are no files.
    """

    strategies: ClassVar[tuple[type[Strategy], ...]]
    in_step: bool = False
    attributes_apart: bool = False
    unshared_prompts: str | None = None
    accumulates: ClassVar[bool] = False
    folders: ClassVar[Writer | None] = None

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def check(self, run: Run) -> None:
        """Refuse what would make gradients or attributions wrong, or is not proven to be right.

        Raises:
            InputError: If the strategy cannot serve.
        """
        check_precision(run.precision.precision)
        if self.in_step and run.skips_steps:
            raise InputError(
                "model.non_finite=skip: a rank that leaves its batch out would leave the others "
                "waiting for its part of the layers: set raise, or use strategy=ddp"
            )
        if run.config.liger is not None and not liger.on_gpu(self.strategy.root_device):
            raise InputError(
                f"policy.liger={run.config.liger} is made of kernels for GPUs, and this run is on "
                f"{self.strategy.root_device}: leave it out, or set trainer.accelerator=gpu"
            )
        if self.folders and run.config.quantization is not None:
            raise InputError(
                f"policy.quantization={run.config.quantization!r} is not proven to be right with a "
                "strategy that shares weights out: use strategy=ddp"
            )
        if self.folders and not run.config.save_frozen:
            raise InputError(
                "policy.save_frozen=false does not go with a strategy that writes and reads its "
                "checkpoints part by part: set policy.save_frozen=true, or use strategy=ddp"
            )

    def settle(self, processes: int) -> None:
        """Fill in what the strategy leaves open, knowing the number of processes."""

    def check_resumed(self, checkpoint: Path, processes: int) -> None:
        """Refuse a checkpoint whose optimizer the strategy cannot go on with.

        Args:
            checkpoint: File or folder.
            processes: How many are to go on from it.

        Raises:
            InputError: If another strategy wrote it, or it is for another number of processes.
        """
        writer = writer_of(checkpoint)
        if writer not in ("file", self.folders):
            raise unresumable(
                checkpoint,
                f"is a folder, whose optimizer the strategy that wrote it ({writer}) alone can go "
                "on with: set that strategy (configs/strategies)",
            )

    def building(self) -> AbstractContextManager[None]:
        """What models are built under."""
        return nullcontext()

    def run_whole(
        self, module: LightningModule, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Call a method of the module as Lightning calls its steps, with weights at hand."""
        return function(*arguments)

    def shard_policy(self, policy: nn.Module) -> None:
        """Share a policy out, or say how Lightning is to do it; changed in place."""

    def shard_frozen(self, model: nn.Module) -> nn.Module:
        """Share a frozen model out, in place or by a wrapper."""
        return model

    def clip(
        self, parameters: Iterable[nn.Parameter], optimizer: Optimizer, limit: float, kind: str
    ) -> None:
        """Clip the gradients of all ranks to a norm, or each number to a value.

        Lightning refuses optimizers that unscale gradients themselves in every mixed precision;
        bf16 scales none.

        Args:
            parameters: Those that are trained.
            optimizer: Their optimizer.
            limit: Norm or value.
            kind: ``norm`` or ``value``.
        """
        plugin, algorithm = self.strategy.precision_plugin, GradClipAlgorithmType(kind)
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            Precision.clip_gradients(plugin, optimizer, limit, algorithm)
        else:
            plugin.clip_gradients(optimizer, limit, algorithm)

    def inner_optimizer(self, optimizer: Any) -> Optimizer:
        """The optimizer that a run has asked for, inside what the strategy makes of it."""
        inner: Optimizer = optimizer
        return inner

    def after_step(self, optimizer: Optimizer) -> None:
        """Clean up after an optimizer step."""


def check_precision(precision: object) -> None:
    """Refuse a precision of the Trainer's that changes the policy, which alone it sees.

    Raises:
        InputError: If it does.
    """
    if str(precision) not in _KEEPING_WEIGHTS:
        raise InputError(
            f"precision={precision} would cast the policy, its positions included, but not the "
            "reference: set policy.dtype, or use precision=bf16-mixed"
        )


class OneDevice(StrategyFamily):
    """One process, one device."""

    strategies = (SingleDeviceStrategy,)


class DataParallel(StrategyFamily):
    """DDP: a whole model on each rank, gradients averaged."""

    strategies = (DDPStrategy,)

    def check(self, run: Run) -> None:
        """Refuse what cannot hand its policy back; see :meth:`StrategyFamily.check`."""
        super().check(run)
        method = self.strategy._start_method
        if method != "popen":
            raise InputError(
                f"strategy ddp_{method} returns a module without its trained policy to the parent "
                "process: use strategy=ddp"
            )
        if run.config.quantization == "int8":
            raise InputError(
                "policy.quantization=int8 with strategy ddp, which sends weights to all processes, "
                "and torchao's cannot be sent: set nf4, or train on one device"
            )


def unresumable(checkpoint: Path, reason: str) -> InputError:
    """What to raise of a checkpoint that training cannot go on from.

    Args:
        checkpoint: Its path.
        reason: The rest of the sentence, and what to set to go on nevertheless.
    """
    return InputError(
        f"ckpt_path={str(checkpoint)!r} {reason}, or export the checkpoint and start from it as "
        "model.policy.path"
    )


def check_unbuilt(run: Run, name: str) -> None:
    """Refuse a policy that is there already, which would stay whole.

    Raises:
        InputError: If there is one.
    """
    if run.policy is not None:
        raise InputError(
            f"strategy {name} shards a policy when it is built, and this one is there already: let "
            "the Trainer build it from policy.path, or use strategy=ddp"
        )


def check_plain_layers(run: Run, name: str) -> None:
    """Refuse layers that run other code than the model's.

    Raises:
        InputError: If they are compiled, or have kernels of Liger.
    """
    for option in ("compile_layers", "liger"):
        if getattr(run.config, option):
            raise InputError(
                f"policy.{option} is not proven to be right with strategy {name}: leave it out"
            )
