"""How models tell positions apart, and which attention they run."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
