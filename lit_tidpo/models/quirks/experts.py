"""Mixtures of experts, and the loss that balances them."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.models.quirks.parts import inner_model


def check_router(model: Any) -> None:
    """Refuse a model without a balancing loss.

    Raises:
        InputError: If it computes none, or its coefficient is 0.
    """
    model = inner_model(model)
    name, coefficient = type(model).__name__, _router_coefficient(model)
    asked = "output_router_logits" in inspect.signature(model.forward).parameters
    if not asked or coefficient is None:
        raise InputError(
            f"{name} computes no balancing loss of a router: leave out the loss 'router'"
        )
    if coefficient == 0:
        raise InputError(
            f"router_aux_loss_coef=0 in the configuration of {name}, so that the loss 'router' "
            "would train nothing: set it in the model's config.json, or leave out the loss"
        )


def _router_coefficient(model: Any) -> float | None:
    name = "router_aux_loss_coef"  # DBRX has it under another name in its configuration
    found = getattr(model, name, None)
    return getattr(model.config.get_text_config(), name, None) if found is None else found


def router_loss(model: Any, output: Any) -> Tensor:
    """Balancing loss that a model computed, times its coefficient, ``[]``."""
    loss: Tensor = _router_coefficient(inner_model(model)) * output.aux_loss
    return loss


def silence_router(model: Any) -> None:
    """Leave out the router's logits and balancing loss where none asks for it, with a word."""
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
            rank_zero_warn(
                "the model's configuration asks for the router's balancing loss "
                "(output_router_logits=true), which is no part of the objective unless a loss asks "
                "for it: --model.losses.router=router adds it"
            )
