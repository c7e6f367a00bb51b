"""How a policy is built: read or drawn, and changed as its options ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.locations import check_revision, gguf_option, locate
from lit_tidpo.models.adapters import with_adapter, with_lora
from lit_tidpo.models.liger import use_liger
from lit_tidpo.models.offload import offload_activations
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.proofs import check_causal
from lit_tidpo.models.quantization import keep_differentiable, quantization_settings
from lit_tidpo.models.quirks.attention import attention_kernel
from lit_tidpo.models.quirks.backward import checkpoint_activations, compile_layers
from lit_tidpo.models.quirks.experts import silence_router
from lit_tidpo.models.quirks.modes import disable_dropout, keep_weights
from lit_tidpo.models.quirks.parts import add_rows
from lit_tidpo.models.tokenizer import policy_tokenizer
from lit_tidpo.seeding import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_reads_weights = ContextVar("reads_weights", default=True)


@contextmanager
def without_weights() -> Iterator[None]:
    """Make models of their configs alone meanwhile: no weights are read."""
    token = _reads_weights.set(False)
    try:
        yield
    finally:
        _reads_weights.reset(token)


def build_policy(config: PolicyConfig) -> PreTrainedModel:
    """Load the model to be trained.

    Args:
        config: Which model, and how.

    Returns:
        The model in train mode.

    Raises:
        InputError: If the path, the adapter or the weights cannot be used.
    """
    model: Any = _load(config)
    if config.lora is not None:
        model = with_lora(model, config.lora, config)
    if config.adapter is not None:
        model = with_adapter(model, config.adapter)
    policy: PreTrainedModel = model.train()
    if config.disable_dropout:
        disable_dropout(policy)
    if config.activation_checkpointing:
        checkpoint_activations(policy)
    if config.compile_layers:
        compile_layers(policy)
    if config.activation_offload:
        offload_activations(policy)
    return policy


def _load(config: PolicyConfig) -> Any:
    if not config.path:
        raise InputError("policy.path is not set: name a model, or attach() one in Python")
    check_revision("policy.revision", config.revision, config.path)
    with_kernel = ""
    if config.attn_implementation != "auto":
        with_kernel = f" with policy.attn_implementation={config.attn_implementation}"
    with explained(f"policy.path={config.path!r} cannot be loaded{with_kernel}"):
        architecture = _architecture(config)
        reads = config.init == "pretrained" and _reads_weights.get()
        model = _read(config, architecture) if reads else _drawn(config, architecture)
        if config.added_tokens is not None:
            with seeded(config.init_seed):
                add_rows(model, policy_tokenizer(config))
        silence_router(model)
        keep_weights(model)
        keep_differentiable(model)
        check_causal(model)
        if config.liger is not None and _reads_weights.get():
            use_liger(model, config.liger)
    if config.attn_implementation == "auto" and attention_kernel(model) == "eager":
        rank_zero_info(f"{type(model).__name__} runs eager attention: it has no other")
    return model


def _place(config: PolicyConfig) -> dict[str, Any]:
    """Where the files of a policy lie, and whether code among them runs."""
    return {
        "pretrained_model_name_or_path": locate(config.path),
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        **gguf_option(config.gguf_file),
    }


def _architecture(config: PolicyConfig) -> Any:
    """The configuration of a causal language model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = AutoConfig.from_pretrained(**_place(config))
    if getattr(architecture, "is_encoder_decoder", False):
        raise InputError(
            f"policy.path={config.path!r} is an encoder-decoder ({architecture.model_type}): "
            "expected a causal language model"
        )
    remote = getattr(architecture, "auto_map", None) or ()
    known = type(architecture) in AutoModelForCausalLM._model_mapping
    if not known and AutoModelForCausalLM.__name__ not in remote:
        raise InputError(
            f"policy.path={config.path!r} is a {architecture.model_type}, of which there is no "
            "causal language model: expected a model of text alone; of one that sees or hears, "
            "name a folder that holds its language model"
        )
    return architecture


def _kernel(config: PolicyConfig) -> dict[str, str]:
    """The attention kernel; nothing leaves the choice to transformers."""
    chosen = config.attn_implementation
    return {} if chosen == "auto" else {"attn_implementation": chosen}


def _read(config: PolicyConfig, architecture: Any) -> Any:
    """The model with the weights of its files."""
    from transformers import AutoModelForCausalLM, GgufConfig

    loading: dict[str, Any] = {"dtype": config.dtype}
    if config.quantization is not None:
        loading["dtype"] = dtype = _dtype(config, architecture)
        loading["quantization_config"] = quantization_settings(config.quantization, dtype)
    elif config.gguf_file is not None:
        loading["quantization_config"] = GgufConfig(dequantize=True)
    load: Any = AutoModelForCausalLM.from_pretrained
    model, found = load(output_loading_info=True, **_kernel(config), **loading, **_place(config))
    _check_weights(config.path, found)
    return model


def _drawn(config: PolicyConfig, architecture: Any) -> Any:
    """The model with weights of its own."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    if config.quantization is not None:
        raise InputError(
            f"policy.quantization={config.quantization!r} is made while weights are read, which "
            "nothing is here: leave it out"
        )
    with seeded(config.init_seed):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            architecture,
            trust_remote_code=config.trust_remote_code,
            dtype=_dtype(config, architecture),
            **_kernel(config),
        )
    with suppress(OSError):  # not every model comes with generation settings
        model.generation_config = GenerationConfig.from_pretrained(
            locate(config.path), revision=config.revision or "main"
        )
    return model


def _dtype(config: PolicyConfig, architecture: Any) -> torch.dtype:
    """Type of the parameters, by itself."""
    if config.dtype == "auto":
        return architecture.dtype or torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def _check_weights(path: str, found: dict[str, Any]) -> None:
    """Refuse weights that are not those of the model; transformers would draw them at random."""
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, found.get(problem) or ()))
        if names:
            raise InputError(
                f"policy.path={path!r}: {len(names)} tensors of the model are "
                f"{problem.removesuffix('_keys')} in its files, such as {names[0]}: use a complete "
                "causal language model, or policy.init=random"
            )
    surplus = sorted(found.get("unexpected_keys") or ())
    if surplus:
        rank_zero_warn(
            f"policy.path={path!r}: {len(surplus)} tensors of its files are no part of the model "
            f"and are left out, such as {surplus[0]}"
        )
