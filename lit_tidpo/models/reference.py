"""The frozen model that the policy is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.models.policy import evaluating


class Reference:
    """The frozen model of the log-ratios. Not an ``nn.Module``.

    So it is in no module tree: neither the optimizer nor the checkpoint nor DDP's buckets see it.

    Args:
        model: A frozen model of its own, or None where the policy without its adapter serves.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model.requires_grad_(False).eval() if model is not None else None

    @classmethod
    def of(cls, policy: nn.Module, fresh_adapters: bool = False) -> Reference:
        """The reference of a policy in its starting state.

        Args:
            policy: A policy that has not been trained yet.
            fresh_adapters: Whether it starts from new adapters, so that its base is the reference.

        Returns:
            The base under fresh adapters, otherwise a frozen copy of the policy.
        """
        return cls(None if fresh_adapters else copy.deepcopy(policy))

    @contextmanager
    def active(self, policy: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """Hand out the model to run as the reference.

        Args:
            policy: The policy, whose adapters are switched off meanwhile if it serves.
            device: Where the batch is.

        Yields:
            A model in eval mode on ``device``.
        """
        if self.model is not None:
            # Weights that were moved in inference mode, which validation has, could serve no graph.
            with torch.inference_mode(False), torch.no_grad():
                self.model.to(device)
            yield self.model
            return
        with evaluating(policy), policy.disable_adapter():  # type: ignore[operator]
            yield policy


def check_compatible(policy: nn.Module, reference: nn.Module | None, needs: frozenset[str]) -> None:
    """Refuse models that cannot serve together, or cannot serve what is asked of them.

    Args:
        policy: The policy.
        reference: A reference of its own, or None.
        needs: Keys of :data:`lit_tidpo.contracts.NEEDS`.

    Raises:
        InputError: If the vocabularies differ, attention probabilities are asked of a kernel that
            has none, or input gradients of a compiled or reentrantly checkpointed model.
    """
    models = {"policy": policy} if reference is None else {"policy": policy, "reference": reference}
    sizes = {name: _vocabulary_size(model) for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"policy and reference have different vocabularies ({sizes['policy']} and "
            f"{sizes['reference']} entries): choose a reference with the policy's tokenizer"
        )
    for need in needs:
        model = models.get(need.split(".")[0], policy)
        kernel = getattr(model.config, "_attn_implementation", None)
        if need.endswith(".attentions") and kernel != "eager":
            raise InputError(
                f"attention importance needs the attention probabilities, which {kernel!r} "
                "attention does not hand out: set policy.attn_implementation=eager"
            )
        if need.endswith(".embeddings"):
            _check_attributable(model)


def _vocabulary_size(model: nn.Module) -> int:
    return int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]


_OVERWRITING = ("swiglu", "geglu")
"""Modules of Liger whose backward pass can run only once."""


def _check_attributable(model: nn.Module) -> None:
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise InputError(
            "gradient importance cannot look into a model compiled as a whole: compile its "
            "layers one by one instead"
        )
    for module in model.modules():
        source = module.forward.__module__
        if source.startswith("liger_kernel.") and source.endswith(_OVERWRITING):
            raise InputError(
                f"gradient importance runs the backward pass of the training forward twice, but "
                f"{source} writes its gradients over what the second run needs, which would make "
                "them wrong without a word: apply Liger with swiglu=False (geglu=False)"
            )
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        if checkpoint is not None and getattr(checkpoint, "keywords", {}).get(
            "use_reentrant", False
        ):
            raise InputError(
                "gradient importance cannot work with reentrant activation checkpointing: enable "
                "it with use_reentrant=False"
            )
