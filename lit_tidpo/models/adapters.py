"""Adapters of peft, new or trained before."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.locations import locate
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.models.proofs import check_causal
from lit_tidpo.models.quirks.adapted_layers import not_to_adapt
from lit_tidpo.models.quirks.parts import check_untied, token_layers
from lit_tidpo.models.tokenizer import policy_tokenizer
from lit_tidpo.seeding import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_lora(model: PreTrainedModel, lora: LoraOptions, config: PolicyConfig) -> PreTrainedModel:
    """A model with new adapters, which alone are trained.

    Args:
        model: The model; changed in place.
        lora: The adapters.
        config: The policy, of which they are.

    Raises:
        InputError: If they fit no layer, or one of two layers that share their weights.
    """
    peft = _import_peft()
    adapters = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        task_type="CAUSAL_LM",
    )
    if config.added_tokens is not None:
        ids = policy_tokenizer(config).convert_tokens_to_ids(config.added_tokens)
        adapters.trainable_token_indices = dict.fromkeys(token_layers(model), ids)
    if lora.target_modules is None:
        adapters.exclude_modules = not_to_adapt(model) or None
        if adapters.exclude_modules:
            rank_zero_info(
                f"Adapters leave out {len(adapters.exclude_modules)} linear layers, whose weights "
                f"the model uses in other ways, such as {adapters.exclude_modules[0]}"
            )
    # All ranks start alike, whatever else they drew.
    with explained("policy.lora cannot be applied"), seeded(config.init_seed):
        adapted: PreTrainedModel = peft.get_peft_model(model, adapters)
        check_untied(adapted)
        check_causal(adapted)
    return adapted


def with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """A model with trained adapters, which go on being trained.

    Args:
        model: The model; changed in place.
        adapter: Their folder.

    Raises:
        InputError: If the folder does not hold them all.
    """
    peft, folder = _import_peft(), locate(adapter)
    if Path(folder).is_dir() and not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(
            f"policy.adapter={adapter!r} holds no adapter_config.json: name an adapter's folder"
        )
    with explained(f"policy.adapter={adapter!r} cannot be loaded"), warnings.catch_warnings():
        # Fresh ones would take the place of what the folder lacks.
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            adapted: PreTrainedModel = peft.PeftModel.from_pretrained(
                model, folder, is_trainable=True
            )
        except UserWarning as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"policy.adapter={adapter!r} lacks tensors: {text}") from error
    check_untied(adapted)
    return adapted


def frozen_names(module: nn.Module) -> set[str]:
    """Names of the weights that are not trained, of tied ones all that they have."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, value in named if not value.requires_grad}


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("adapters need peft: pip install 'lit-tidpo[lora]'") from error
    return peft
