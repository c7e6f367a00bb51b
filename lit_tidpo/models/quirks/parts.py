"""Parts of a model: inside peft's wrapper, its input embeddings and its output layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.models.sharding import is_sharded

_AFTER_THE_HEAD = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "unpadded_vocab_size",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings by which models of transformers change what their output layer computed."""


def inner_model(policy: Any) -> Any:
    """The model inside peft's wrapper; a policy without one is that model."""
    return policy.get_base_model() if hasattr(policy, "get_base_model") else policy


def input_layer(model: nn.Module) -> nn.Module:
    """The input embeddings.

    Raises:
        InputError: If the model is none of transformers.
    """
    layer: nn.Module = _method(model, "get_input_embeddings")()
    return layer


def output_layer(model: nn.Module) -> nn.Module | None:
    """The output layer; None where it is no module of its own.

    Raises:
        InputError: If the model is none of transformers.
    """
    layer: nn.Module | None = _method(model, "get_output_embeddings")()
    return layer


def _method(model: nn.Module, name: str) -> Any:
    method = getattr(model, name, None)
    if method is None:
        raise InputError(
            f"{type(model).__name__} has no {name}: expected a causal language model of "
            "transformers"
        )
    return method


def head_outside(model: nn.Module) -> nn.Linear | None:
    """The output layer, if it can be applied to hidden states outside the model.

    That is a plain linear layer whose output the model hands out as it is, whole on this device.
    """
    config: Any = getattr(model, "config", None)
    head = output_layer(model)
    if type(head) is not nn.Linear or is_sharded(model) or config is None:
        return None
    settings = config.get_text_config()
    changed = any(getattr(settings, name, None) not in (None, 1.0) for name in _AFTER_THE_HEAD)
    return None if changed else head


def vocabulary_size(model: nn.Module) -> int:
    """Entries of the input embeddings."""
    layer = input_layer(model)
    while not hasattr(layer, "num_embeddings"):  # peft's wrapper of single tokens' rows
        layer = layer.original_module  # type: ignore[assignment]
    return int(layer.num_embeddings)  # type: ignore[arg-type]


def add_rows(model: Any, tokenizer: Any) -> None:
    """Give each token of a tokenizer a row of the embeddings; a new one is the mean of the others.

    Models often have more rows than tokens; those serve as they are.
    """
    if len(tokenizer) > vocabulary_size(model):
        model.resize_token_embeddings(len(tokenizer))


def token_layers(model: Any) -> list[str]:
    """Names of the modules with a row for each token; of tied ones, of the embeddings alone."""
    layers: list[nn.Module | None] = [input_layer(model)]
    if not model.config.get_text_config().tie_word_embeddings:
        layers.append(output_layer(model))
    return [name for name, module in model.named_modules() if any(module is x for x in layers)]


def check_untied(model: Any) -> None:
    """Refuse adapters of one of two layers that share their weights.

    Merged for export, they would change the other layer, too.

    Raises:
        InputError: If a model with tied embeddings has an adapter on its input or output layer.
    """
    base = inner_model(model)
    head = output_layer(base)
    shared = base.config.get_text_config().tie_word_embeddings
    layers = (input_layer(base), head)
    adapted = [layer for layer in layers if {"base_layer", "modules_to_save"} & _parts(layer)]
    if shared and adapted:
        raise InputError(
            "policy.lora adapts the output layer or the embeddings, but this model shares their "
            "weights (tie_word_embeddings), so that merging one would change the other: choose "
            "other target_modules and modules_to_save"
        )


def _parts(module: nn.Module | None) -> set[str]:
    return set() if module is None else {name for name, _ in module.named_children()}
