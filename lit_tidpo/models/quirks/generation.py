"""How models generate: where a response ends, and what keeps keys and values."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch

from lit_tidpo.errors import InputError
from lit_tidpo.models.quirks.parts import inner_model
from lit_tidpo.models.sharding import is_sharded

CacheKind = Literal["static", "growing", "none"]


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
