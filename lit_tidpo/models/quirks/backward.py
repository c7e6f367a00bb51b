"""What changes a model's backward pass, which gradient importance runs twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.sharding import decoder_layers

_OVERWRITING = ("swiglu", "geglu")
"""Modules of Liger whose backward pass can run only once."""


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass; changed in place.

    Raises:
        InputError: If the model cannot.
    """
    # Reentrant checkpointing cannot serve torch.autograd.grad, which attribution uses.
    name = "activation_checkpointing_enable"  # its old name is deprecated
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    with explained("policy.activation_checkpointing cannot be used, leave it out"):
        enable({"use_reentrant": False})


def compile_layers(model: nn.Module) -> None:
    """Compile the decoder's layers for any number of tokens; changed in place.

    Raises:
        InputError: If the model names no layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise InputError(
            f"policy.compile_layers: {type(model).__name__} does not tell which modules are its "
            "layers: leave it out"
        )
    # Gradient attribution runs the same backward pass twice, which must not reuse its buffers.
    torch._functorch.config.donated_buffer = False
    for layer in layers:
        layer.compile(dynamic=True)


def check_attributable(model: nn.Module) -> None:
    """Refuse a model of which no gradient for the input embeddings can be taken.

    Raises:
        InputError: If it is compiled as a whole, or checkpointed by reentering, or if it holds
            modules whose backward pass can run only once.
    """
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
