"""What is particular to families of models, and to the libraries that they come from.

Every fact about an architecture of transformers, about peft or about Liger that the rest of the
package goes by stands here, or in :mod:`lit_tidpo.models.experts`, of mixtures of experts, and
:mod:`lit_tidpo.models.adapted_layers`. What can be found out of a model is not stated but proven,
in :mod:`lit_tidpo.models.proofs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.sharding import decoder_layers, is_sharded

# Which models there are


def is_causal_type(architecture: Any) -> bool:
    """Whether a configuration is one of a causal language model."""
    from transformers import AutoModelForCausalLM

    remote = getattr(architecture, "auto_map", None) or ()
    return type(architecture) in AutoModelForCausalLM._model_mapping or (
        AutoModelForCausalLM.__name__ in remote
    )


# Modes and dropout


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in a model to 0.

    Attention layers keep theirs as a plain number (``attention_dropout``), which is no
    ``nn.Dropout``, and some read theirs from the config at each forward: all kinds are set.

    Args:
        model: Changed in place, with its config.
    """
    holders: list[object] = list(model.modules())
    config = getattr(model, "config", None)
    if config is not None:
        holders += [config, config.get_text_config()]
    for holder in holders:
        if isinstance(holder, nn.Dropout):
            holder.p = 0.0
        for name, value in vars(holder).items():
            if "drop" in name and isinstance(value, float):  # layerdrop, resid_pdrop, ...
                setattr(holder, name, 0.0)
            elif "jitter" in name and value and isinstance(holder, nn.Module):
                holder.eval()  # Phi-MoE draws its experts in train mode


def keep_weights(model: Any) -> None:
    """Keep a model from changing its weights by its mode: RWKV halves them in eval mode, in place.

    A checkpoint written then would hold them so, and a graph would break.
    """
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0


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


# Input and output layers

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


# Positions and attention


def learned_positions(model: Any) -> int | None:
    """Length of a table of learned positions; None for encodings without an end."""
    config = getattr(model, "config", None)
    if config is None:  # not one of transformers
        return None
    settings = config.get_text_config()
    if getattr(settings, "rope_parameters", None) or getattr(settings, "alibi", False):
        return None
    return getattr(settings, "max_position_embeddings", None)


def stretched_beyond(model: Any) -> int | None:
    """Tokens beyond which RoPE's frequencies change with the longest row of a pass, if they do."""
    config = getattr(model, "config", None)
    if config is None:  # not one of transformers
        return None
    settings = config.get_text_config()
    parameters = getattr(settings, "rope_parameters", None) or {}
    of_layer_types = [each for each in parameters.values() if isinstance(each, dict)]
    for each in (parameters, *of_layer_types):
        if each.get("rope_type") in ("dynamic", "longrope"):
            own = each.get("original_max_position_embeddings")
            return int(own or settings.max_position_embeddings)
    return None


def attention_kernel(model: Any) -> str | None:
    """Name of the attention implementation."""
    return getattr(model.config, "_attn_implementation", None)


def attention_maps(output: Any, length: int) -> tuple[Tensor, ...]:
    """Attention probabilities of the layers that have any, ``[N, heads, T, T]`` each.

    Layers that mix tokens in other ways, such as recurrences, hand out None or their own states.
    """
    handed_out = getattr(output, "attentions", None) or ()
    return tuple(
        each for each in handed_out if each is not None and each.shape[2:] == (length, length)
    )


def has_attention_interface(model: Any) -> bool:
    """Whether the attention implementation can be exchanged for one of ours."""
    return bool(getattr(model, "_supports_attention_backend", False))


# Gradients for the input

_OVERWRITING = ("swiglu", "geglu")
"""Modules of Liger whose backward pass can run only once."""


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


# Generation

CacheKind = Literal["static", "growing", "none"]


def inner_model(policy: Any) -> Any:
    """The model inside peft's wrapper; a policy without one is that model."""
    return policy.get_base_model() if hasattr(policy, "get_base_model") else policy


def end_ids(policy: Any) -> list[int]:
    """Tokens that end a response."""
    ends = policy.generation_config.eos_token_id
    if ends is None:
        ends = policy.config.get_text_config().eos_token_id
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)


def pad_id(policy: Any) -> int:
    """Any token: what is padded is found by its length."""
    pad = policy.generation_config.pad_token_id
    return int(pad) if pad is not None else next(iter(end_ids(policy)), 0)


def most_positions(policy: Any) -> int | None:
    """Positions that a model is made for."""
    return getattr(policy.config.get_text_config(), "max_position_embeddings", None)


def generation_cache(
    policy: Any, positions: int, kind: CacheKind = "static", compiled: bool = False
) -> dict[str, Any]:
    """Arguments of ``generate`` for a cache with all its room from the start.

    The usual one is copied at every token. Under autocast keys and values differ in dtype, which a
    cache made at once cannot hold. In a synchronised run this rank goes on with the others when it
    is done, so its own room does not tell how many tokens come.

    Args:
        policy: The policy.
        positions: All of them.
        kind: ``growing`` takes the usual one all the same, ``none`` does without.
        compiled: Have transformers compile the model for such a cache, with CUDA graphs on a GPU.

    Raises:
        InputError: If the model cannot be compiled so.
    """
    from transformers import CompileConfig, StaticCache

    model = inner_model(policy)
    config = model.config.get_text_config(decoder=True)
    # Other models attend by the length of the cache, such as GPT-Neo; ALiBi of Falcon does, too.
    fits = getattr(model, "_can_compile_fullgraph", False) and not getattr(config, "alibi", False)
    # The second is the name before transformers 5.24, whose state-space models have neither.
    names = inspect.signature(model.forward).parameters.keys() & {"cache", "past_key_values"}
    autocast = torch.is_autocast_enabled(next(model.parameters()).device.type)
    static = kind == "static" and bool(fits and names) and not autocast
    if compiled:
        if not static or is_sharded(policy):
            why = "under fp16 autocast" if autocast else "and a cache of fixed size"
            why = "sharded over ranks" if is_sharded(policy) else why
            raise InputError(
                f"anchor.compiled=true: {type(model).__name__} cannot be compiled {why}: leave it "
                "out"
            )
        how = CompileConfig()
        how._compile_all_devices = True  # type: ignore[assignment] # what is asked for is done
        return {"use_cache": True, "cache_implementation": "static", "compile_config": how}
    if kind == "none":
        return {"use_cache": False}
    if not static:
        return {"use_cache": True}
    cache = StaticCache(config, max_cache_len=positions)
    return {"use_cache": True, names.pop(): cache, "disable_compile": True}
