"""Conditions that steps run under: inference mode, ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_tidpo.devices.deferred_checks import DeferredChecks
from lit_tidpo.errors import InputError
from lit_tidpo.models.quantization import dense
from lit_tidpo.structures import ResponseBatch


def outside_inference(batch: ResponseBatch) -> ResponseBatch:
    """Copy tensors made in inference mode, which no graph may hold."""
    copies: dict[str, Any] = {
        field.name: value.clone()
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor) and value.is_inference()
    }
    return dataclasses.replace(batch, **copies).known_as(batch.host)


def data_share(trainer: Trainer | None) -> dict[str, Any]:
    """``rank`` and ``num_replicas`` among ranks with other rows.

    Those that split matrices between them (tensor parallelism) have the same.
    """
    share = None if trainer is None else trainer.distributed_sampler_kwargs
    return {"num_replicas": 1, "rank": 0} if share is None else share


def told_by_data(trainer: Trainer, name: str, default: Any) -> Any:
    """What the run's data module says of itself; loaders of one's own say nothing.

    Args:
        trainer: The Trainer.
        name: Attribute of :class:`lit_tidpo.data.PreferenceDataModule`.
        default: What holds where there is no such attribute.
    """
    return getattr(getattr(trainer, "datamodule", None), name, default)


def from_all_ranks(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Collect a value of every rank, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    collected: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(collected, value)
    return collected


def zero_loss(module: nn.Module) -> Tensor:
    """A loss whose gradient is zero for every trainable parameter, to keep all ranks in step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.stack([torch.zeros_like(p).mul(p).sum() for p in parameters]).sum()


def give_widths(learned: nn.Module, policy: nn.Module) -> None:
    """Let layers of components whose width was left open (``nn.LazyLinear``) take hidden states.

    Args:
        learned: What is trained beside the policy.
        policy: The model whose hidden states they take.
    """
    for layer in learned.modules():
        if isinstance(layer, nn.LazyLinear) and layer.has_uninitialized_params():
            config: Any = policy.config
            with torch.no_grad():
                layer(torch.zeros(1, config.get_text_config().hidden_size))


def check_weights(module: nn.Module) -> None:
    """Refuse weights that are not finite.

    Raises:
        InputError: If a parameter holds NaN or infinite values.
    """
    checks = DeferredChecks()
    for name, parameter in module.named_parameters():
        error = InputError(
            f"{name} holds weights that are NaN or infinite before the first step: load other "
            "weights, or an earlier checkpoint"
        )
        checks.expect(dense(parameter).isfinite().all(), error)
    checks.settle()
