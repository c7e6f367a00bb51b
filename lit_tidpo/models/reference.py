"""The models that the policy is compared with: the reference, and any others that a run names."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from lit_tidpo.devices.host_rows import HostRows, to_device
from lit_tidpo.errors import InputError
from lit_tidpo.models.needs import find
from lit_tidpo.models.proofs import check_attentions
from lit_tidpo.models.quirks.attention import attention_kernel
from lit_tidpo.models.quirks.backward import check_attributable
from lit_tidpo.models.quirks.experts import check_router
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import vocabulary_size
from lit_tidpo.structures import ResponseBatch


class OtherModel(ABC):
    """A model beside the policy. Not an ``nn.Module``.

    So it is in no module tree: neither the optimizer nor the checkpoint nor DDP's buckets see it.

    Attributes:
        model: A model of its own, or None where the policy serves.
    """

    model: nn.Module | None = None

    @abstractmethod
    def active(self, policy: nn.Module, device: torch.device) -> AbstractContextManager[nn.Module]:
        """Hand out the model to run, in eval mode on ``device``, for as long as the context lasts.

        Args:
            policy: The policy.
            device: Where the batch is.
        """

    def rows(self, batch: ResponseBatch) -> ResponseBatch:
        """The rows that it runs in the place of a batch's."""
        return batch

    def exchange(self, change: Callable[[nn.Module], nn.Module]) -> None:
        """Put what ``change`` makes of the model in its place, if there is one of its own."""
        if self.model is not None:
            self.model = change(self.model)


class FrozenModel(OtherModel):
    """A frozen model of its own.

    Args:
        model: The model; its parameters take no gradient from now on.
        rebuild: Makes the same model again, from its source and never from a trained policy, once
            it has been let go of; without, it stays.
    """

    def __init__(self, model: nn.Module, rebuild: Callable[[], nn.Module] | None = None) -> None:
        self.model = model.requires_grad_(False).eval()
        self._rebuild = rebuild

    @classmethod
    def copy_of(
        cls, policy: nn.Module, rebuild: Callable[[], nn.Module] | None = None
    ) -> FrozenModel:
        """A frozen copy of a policy in its starting state."""
        return cls(copy.deepcopy(policy), rebuild)

    @contextmanager
    def active(self, policy: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """Hand out the model, built again if need be; see :meth:`OtherModel.active`."""
        if self.model is None:
            assert self._rebuild is not None
            # Validation runs in inference mode, whose tensors could serve no graph later on, and
            # building must not move what training draws.
            with torch.inference_mode(False), torch.random.fork_rng([]):
                self.model = self._rebuild().requires_grad_(False).eval()
        # Weights that were moved in inference mode, which validation has, could serve no graph.
        with torch.inference_mode(False), torch.no_grad():
            self.model.to(device)
        yield self.model

    def release(self) -> None:
        """Let go of the model, if it can be built again."""
        if self._rebuild is not None:
            self.model = None


class BaseOfAdapters(OtherModel):
    """The policy without the new adapters that are trained."""

    @contextmanager
    def active(self, policy: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """Hand out the policy with its adapters off; see :meth:`OtherModel.active`."""
        with evaluating(policy), policy.disable_adapter():  # type: ignore[operator]
            yield policy


class InstructedModel(OtherModel):
    """A model under another prompt: the policy as it is now, or another one.

    Args:
        instruction: Token ids that are put before every prompt.
        begin: Token that begins a sequence; it stays the first one.
        other: The model; None takes the policy itself.
    """

    def __init__(
        self,
        instruction: Sequence[int],
        begin: int | None = None,
        other: OtherModel | None = None,
    ) -> None:
        self.model = None if other is None else other.model
        self._instruction = torch.tensor(instruction)
        self._begin = begin
        self._other = other

    def rows(self, batch: ResponseBatch) -> ResponseBatch:
        """The rows with the instruction before their prompts."""
        begins = self._begin is not None and bool((batch.host.input_ids[:, 0] == self._begin).all())

        def instructed(given: ResponseBatch | HostRows) -> dict[str, Any]:
            ids, start, more = given.input_ids, int(begins), len(self._instruction)
            instruction = to_device(self._instruction, ids.device).to(ids.dtype)
            parts = [ids[:, :start], instruction.expand(len(ids), more), ids[:, start:]]
            context = given.context
            if context is not None:
                none = context.new_zeros(len(ids), more)
                context = torch.cat([context[:, :start], none, context[:, start:]], 1)
            return {
                "input_ids": torch.cat(parts, 1),
                "context": context,
                "prompt_lengths": given.prompt_lengths + more,
                "lengths": given.lengths + more,
            }

        host = dataclasses.replace(batch.host, **instructed(batch.host))
        return dataclasses.replace(
            batch, **instructed(batch), supplied_weights=None, behaviour_logps=None
        ).known_as(host)

    def exchange(self, change: Callable[[nn.Module], nn.Module]) -> None:
        """As of the model inside; see :meth:`OtherModel.exchange`."""
        if self._other is not None:
            self._other.exchange(change)
            self.model = self._other.model

    @contextmanager
    def active(self, policy: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """Hand out the model; see :meth:`OtherModel.active`."""
        if self._other is not None:
            with self._other.active(policy, device) as model:
                yield model
        else:
            with evaluating(policy):
                yield policy


def check_compatible(
    policy: nn.Module, others: dict[str, OtherModel], needs: frozenset[str]
) -> None:
    """Refuse models that cannot serve together, or cannot serve what is asked of them.

    Args:
        policy: The policy.
        others: The other models by name.
        needs: Needs of :mod:`lit_tidpo.models.needs`.

    Raises:
        InputError: If vocabularies differ, attention probabilities are asked of a kernel that has
            none, input gradients of a compiled or reentrantly checkpointed model, or what spans the
            prompt of a model under another prompt.
    """
    models = {"policy": policy}
    models |= {name: other.model for name, other in others.items() if other.model is not None}
    size = vocabulary_size(policy)
    for name, model in models.items():
        if vocabulary_size(model) != size:
            raise InputError(
                f"policy and {name} have different vocabularies ({size} and "
                f"{vocabulary_size(model)} entries): choose a {name} with the policy's tokenizer"
            )
    for need in needs:
        name = need.rpartition(".")[0]
        if not name:
            continue
        quantity, model = find(need), models.get(name, policy)
        if quantity.eager and attention_kernel(model) != "eager":
            raise InputError(
                f"attention importance needs the attention probabilities, which "
                f"{attention_kernel(model)!r} attention does not hand out: set "
                "policy.attn_implementation=eager"
            )
        if quantity.eager:
            check_attentions(model)
        if quantity.router:
            check_router(model)
        if quantity.attributed:
            check_attributable(model)
        if quantity.whole and isinstance(others.get(name), InstructedModel):
            raise InputError(
                f"{need!r} spans the prompt, but {name} runs under another prompt: ask for it of a "
                f"model without model.models.{name}.prompt"
            )
