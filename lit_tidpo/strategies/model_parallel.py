"""``ModelParallelStrategy``: FSDP2, tensor parallelism, or both on a mesh of devices."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.optim import Optimizer

from lit_tidpo.errors import InputError
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import inner_model, vocabulary_size
from lit_tidpo.models.sharding import decoder_layers, is_sharded
from lit_tidpo.strategies.family import (
    Run,
    StrategyFamily,
    check_plain_layers,
    check_unbuilt,
)

_STYLES: dict[str, Any] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    # A norm of each head: its input is split by heads, and its gradient is the sum over them.
    "replicated_with_grad_allreduce": lambda: SequenceParallel(
        sequence_dim=2, use_local_output=True
    ),
}
"""How PyTorch does what a plan of transformers says of a module."""


class ModelParallel(StrategyFamily):
    """Layers shared out over data-parallel devices, their matrices over tensor-parallel ones."""

    strategies = (ModelParallelStrategy,)
    in_step = True
    folders = "model_parallel"

    @property
    def mesh(self) -> DeviceMesh:
        """Devices, with the dimensions ``data_parallel`` and ``tensor_parallel``."""
        mesh: DeviceMesh = self.strategy.device_mesh
        return mesh

    def settle(self, processes: int) -> None:
        """Share layers out over whatever matrices are not, rather than over the nodes alone.

        Raises:
            InputError: If the sizes do not make the number of processes.
        """
        strategy = self.strategy
        data, ways = strategy._data_parallel_size, strategy._tensor_parallel_size
        if ways == "auto":
            return
        if data == "auto":
            data = strategy._data_parallel_size = max(1, processes // ways)
        if data * ways != processes:
            raise InputError(
                f"tensor_parallel_size={ways} with {processes} processes (trainer.devices times "
                f"trainer.num_nodes) in {data} groups: expected a size that divides them, and as "
                "many groups (data_parallel_size) as that makes, or auto"
            )

    def check(self, run: Run) -> None:
        """Refuse what cannot be sharded; see :meth:`StrategyFamily.check`."""
        check_plain_layers(run, "model_parallel")
        super().check(run)
        if run.policy is None or not is_sharded(run.policy):
            check_unbuilt(run, "model_parallel")
        if run.learns and self.mesh["data_parallel"].size() > 1:
            raise InputError(
                "a loss or an importance has parameters of its own, whose gradients strategy "
                "model_parallel does not average over the groups of ranks: use strategy=ddp, or "
                "data_parallel_size=1"
            )
        if self.mesh["tensor_parallel"].size() == 1:
            return
        if run.config.lora is not None or run.config.adapter is not None:
            raise InputError(
                "adapters cannot be split by tensor parallelism, whose plan names the layers that "
                "they wrap: set tensor_parallel_size=1 (configs/strategies/fsdp2.yaml), or train "
                "all parameters"
            )
        split = sorted(need for need in run.needs if need.endswith(".attentions"))
        if split:
            raise InputError(
                f"a component needs {split}, but with tensor parallelism each rank has those of "
                "its own heads alone: set tensor_parallel_size=1 (configs/strategies/fsdp2.yaml)"
            )

    def shard_policy(self, policy: nn.Module) -> None:
        """Split matrices, then shard layers; see :meth:`StrategyFamily.shard_policy`."""
        # peft's wrapper generates by the model inside, whose hooks must gather.
        model, data = inner_model(policy), self.mesh["data_parallel"]
        if self.mesh["tensor_parallel"].size() > 1:
            split_matrices(model, self.mesh["tensor_parallel"])
        if data.size() > 1 or not is_sharded(model):
            for layer in decoder_layers(model):
                fully_shard(layer, mesh=data)
            fully_shard(model, mesh=data)

    def shard_frozen(self, model: nn.Module) -> nn.Module:
        """As a policy."""
        self.shard_policy(model)
        return model

    def clip(
        self, parameters: Iterable[nn.Parameter], optimizer: Optimizer, limit: float, kind: str
    ) -> None:
        """Clip by the norm over the mesh; see :meth:`StrategyFamily.clip`."""
        clip_sharded(parameters, limit, kind)


def clip_sharded(parameters: Iterable[nn.Parameter], limit: float, kind: str) -> None:
    """Clip gradients of which some are shared out over all devices, some over others or none.

    ``torch.nn.utils.clip_grad_norm_`` stacks their norms, which takes tensors of one mesh.

    Args:
        parameters: Those that are trained; the norms of sharded ones are of the whole.
        limit: Norm or value.
        kind: ``norm`` or ``value``.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    if kind == "value":
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
        return
    norms: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        mesh = getattr(gradient, "device_mesh", None)
        norms.setdefault(mesh, []).append(torch.linalg.vector_norm(gradient))
    totals = [torch.linalg.vector_norm(torch.stack(each)) for each in norms.values()]
    whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in totals]
    total = torch.linalg.vector_norm(torch.stack(whole))
    factor = float((limit / (total + 1e-6)).clamp(max=1.0))
    for gradient in gradients:
        gradient.mul_(factor)


def split_matrices(model: Any, devices: DeviceMesh) -> None:
    """Split the matrices in a model's layers as its own plan says; embeddings and head stay whole.

    Args:
        model: A model of transformers, changed in place.
        devices: To split over.

    Raises:
        InputError: If the model has no plan that can be followed, or gives other logits then.
    """
    plan, name = _plan_of_layers(model), type(model).__name__
    ways = devices.size()
    config = model.config.get_text_config()
    for count in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, count, None)
        if heads is not None and heads % ways:
            raise InputError(
                f"tensor_parallel_size={ways}: {name} has {count}={heads}, which it does not "
                "divide: choose one that does"
            )
    before = _probe(model)
    parallelize_module(model, devices, plan)
    error = float((_probe(model) - before).abs().max())
    # A sum over ranks is rounded once more for each of them.
    close = max(1e-3, 8 * torch.finfo(next(model.parameters()).dtype).eps)
    if not error < close * float(before.abs().max()):
        raise InputError(
            f"tensor_parallel_size={ways}: {name} gives other logits then, by up to {error:.2g}: "
            "set 1 (configs/strategies/fsdp2.yaml)"
        )


def _plan_of_layers(model: Any) -> dict[str, ParallelStyle]:
    """What to do with each module, by its name."""
    patterns = getattr(model, "_tp_plan", None) or {}
    layers = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    plan, unknown = {}, set()
    for module_name, module in model.named_modules():
        styles = [s for pattern, s in patterns.items() if fnmatch.fnmatch(module_name, pattern)]
        if not styles or id(module) not in layers:
            continue
        if styles[0] in _STYLES:
            plan[module_name] = _STYLES[styles[0]]()
        else:
            unknown.add(styles[0])
    if not plan or unknown:
        reason = f"asks for {sorted(unknown)}" if unknown else "has none"
        raise InputError(
            f"tensor parallelism goes by the plan of transformers, and {type(model).__name__} "
            f"{reason}: set tensor_parallel_size=1 (configs/strategies/fsdp2.yaml)"
        )
    return plan


def _probe(model: nn.Module) -> Tensor:
    """Logits of a few tokens."""
    device = next(model.parameters()).device
    ids = (torch.arange(1, 9, device=device) * 7919 % vocabulary_size(model)).unsqueeze(0)
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits.float()
    return logits
