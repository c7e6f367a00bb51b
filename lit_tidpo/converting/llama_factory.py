"""From a YAML of LLaMA-Factory, stage ``dpo`` or ``kto``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_tidpo.converting.llama_factory_data import convert_data
from lit_tidpo.converting.llama_factory_options import OPTIONS, PREF_LOSS
from lit_tidpo.converting.options import Conversion
from lit_tidpo.converting.quantising import quantise
from lit_tidpo.converting.sharding import convert_sharding
from lit_tidpo.converting.training import convert_training
from lit_tidpo.errors import InputError

_ATTENTION = {
    "auto": "auto",
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}
_LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")


def convert_llama_factory(
    given: Mapping[str, Any], rows: int | None = None, folder: Path = Path()
) -> Conversion:
    """What a configuration of LLaMA-Factory becomes.

    Args:
        given: Options as a user gave them.
        rows: Number of training rows, which shares of a run may need.
        folder: Folder that a relative ``dataset_dir`` is in.

    Raises:
        InputError: If an option is unknown, or has a value that LLaMA-Factory refuses, or its stage
            does not train on preferences.
    """
    run = Conversion(OPTIONS, dict(given), rows)
    if run["stage"] not in ("dpo", "kto"):
        raise InputError(
            f"stage={run['stage']!r}: expected dpo or kto; for supervised fine-tuning see "
            "`lit-tidpo sft fit`"
        )
    run.copy()
    run.set("trainer.devices", 1)
    convert_training(run)
    _model(run)
    _added_tokens(run)
    _quantisation(run)
    _types(run)
    convert_sharding(run)
    _losses(run)
    convert_data(run, folder)
    return run


def _model(run: Conversion) -> None:
    run.set("model.policy.path", run["model_name_or_path"])
    if not run["model_name_or_path"]:
        run.tell("model_name_or_path", "none", "not given: set model.policy.path")
    revision = run["model_revision"]
    run.set("model.policy.revision", None if revision == "main" else revision)
    if run["flash_attn"] not in _ATTENTION:
        raise InputError(f"flash_attn={run['flash_attn']!r}: expected one of {[*_ATTENTION]}")
    run.set("model.policy.attn_implementation", _ATTENTION[run["flash_attn"]])
    saves = run["gradient_checkpointing"] and not run["disable_gradient_checkpointing"]
    run.set("model.policy.activation_checkpointing", saves)
    run.set("model.policy.init", "random" if run["train_from_scratch"] else "pretrained")
    run.set("model.policy.disable_dropout", True)
    run.set("model.reference", run["ref_model"])
    kind, adapters = run["finetuning_type"], run["adapter_name_or_path"] or []
    if kind not in ("lora", "full"):
        run.tell("finetuning_type", "none", f"{kind}: takes lora; adapters are LoRA's here")
    if len(adapters) > 1:
        run.tell("adapter_name_or_path", "none", "takes the last; merge the others into the model")
    if adapters:
        run.set("model.policy.adapter", adapters[-1])
    if kind == "full":
        run.idle("of adapters", *(name for name in run.given if name.startswith("lora_")))
    elif not adapters:
        run.set("model.policy.lora", _lora(run))


def _lora(run: Conversion) -> dict[str, Any]:
    target = run["lora_target"]
    if run["lora_dropout"]:
        run.tell("lora_dropout", "idle", "its trainers set all dropout to 0, as is done here")
    everything = target in ("all", ["all"])
    return {
        "r": run["lora_rank"],
        "alpha": run["lora_alpha"] or 2 * run["lora_rank"],
        "dropout": 0.0,
        "target_modules": None if everything else target,
        "modules_to_save": run["additional_target"],
        "use_rslora": run["use_rslora"],
        "use_dora": run["use_dora"],
    }


def _added_tokens(run: Conversion) -> None:
    if tokens := [*(run["add_tokens"] or []), *(run["add_special_tokens"] or [])]:
        run.set("model.policy.added_tokens", tokens)


def _quantisation(run: Conversion) -> None:
    if run["quantization_bit"] is not None and run["quantization_method"] in ("bnb", "BNB"):
        bits, kind = run["quantization_bit"], run["quantization_type"]
        quantise(run, "quantization_bit", bits, kind, run["double_quantization"])


def _types(run: Conversion) -> None:
    """Frozen weights in the type of the computation, trained ones in fp32, unless all is bf16."""
    computed = "bfloat16" if run["bf16"] else "float16" if run["fp16"] else "auto"
    if run["pure_bf16"]:
        run.set("trainer.precision", "32-true")
        dtype = "bfloat16"
    elif run["finetuning_type"] == "full":
        dtype = "float32"
        if run["bf16"] or run["fp16"]:
            why = "the reference is in fp32 as well, theirs in the type of the computation"
            run.tell("bf16" if run["bf16"] else "fp16", "near", why)
    else:
        dtype = computed
    run.set("model.policy.dtype", dtype)


def _losses(run: Conversion) -> None:
    losses, factors = {}, {}
    name, loss = _kto(run) if run["stage"] == "kto" else _preference(run)
    losses[name], factors[name] = loss, 1.0
    if run["pref_ftx"]:
        losses["sft"], factors["sft"] = {"class_path": "sft"}, run["pref_ftx"]
        if run["stage"] == "kto":
            run.tell("pref_ftx", "near", "theirs counts each wanted response of a batch of labels")
    if run["stage"] == "kto":
        names = ("pref_loss", "simpo_gamma", "dpo_label_smoothing", "ld_alpha", "pref_bco_weight")
        run.idle("of the stage dpo", *names)
    elif run["pref_loss"] != "simpo":
        run.idle("of simpo", "simpo_gamma")
    if name != "kto":
        run.idle("of the stage kto", "kto_chosen_weight", "kto_rejected_weight")
    run.set("model.importance", None)
    run.set("model.losses", losses)
    run.set("model.loss_weights", factors)


def _kto(run: Conversion) -> tuple[str, dict[str, Any]]:
    settings = {
        "beta": run["pref_beta"],
        "desirable_weight": run["kto_chosen_weight"],
        "undesirable_weight": run["kto_rejected_weight"],
    }
    return "kto", {"class_path": "kto", "init_args": settings}


def _preference(run: Conversion) -> tuple[str, dict[str, Any]]:
    kind, beta, smoothing = run["pref_loss"], run["pref_beta"], run["dpo_label_smoothing"]
    if kind not in _LOSSES:
        raise InputError(f"pref_loss={kind!r}: expected one of {_LOSSES}")
    if smoothing and kind != "sigmoid":
        raise InputError("dpo_label_smoothing goes with pref_loss=sigmoid alone: leave it out")
    if kind in ("hinge", "ipo"):
        run.tell("pref_loss", "near", PREF_LOSS)
    if kind == "kto_pair":
        why = "takes kto, whose KL is of responses under other prompts, not of the pair's own"
        run.tell("pref_loss", "none", why)
        return _kto(run)
    settings: dict[str, Any] = {"alpha" if kind == "orpo" else "beta": beta}
    name = {"sigmoid": "dpo"}.get(kind, kind)
    if smoothing:
        name, settings["label_smoothing"] = "cdpo", smoothing
    if kind == "simpo":
        settings["margin"] = run["simpo_gamma"]
    if kind == "ipo":
        settings["length_normalised"] = True
    if run["ld_alpha"] not in (None, 1.0):
        if name == "dpo":
            name, settings["alpha"] = "ld_dpo", run["ld_alpha"]
        else:
            run.tell("ld_alpha", "none", "ld_dpo is DPO alone, without label smoothing")
    return kind, {"class_path": name, "init_args": settings}
