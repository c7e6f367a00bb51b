"""From ``trl dpo``, TRL 1.16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_tidpo.converting.options import Conversion
from lit_tidpo.converting.quantising import quantise
from lit_tidpo.converting.sharding import convert_sharding, merge_accelerate
from lit_tidpo.converting.training import convert_training
from lit_tidpo.converting.trl_losses import convert_losses
from lit_tidpo.converting.trl_options import OPTIONS
from lit_tidpo.errors import InputError

UNLIMITED = 1_000_000
"""Tokens that no row has, where the other trainer has no limit."""
TYPES = ("float32", "bfloat16", "float16", "auto")
_INITIAL = {"revision": "model_revision", "trust_remote_code": "trust_remote_code"}
_KNOWN_INITIAL = (*_INITIAL, "dtype", "torch_dtype", "attn_implementation")
_CALLBACKS = "lit_tidpo.callbacks.MovingReference"
_DROPPED = (
    "rows with an empty or identical response, which TRL trains on, are dropped; prompts that fill "
    "it keep their end, where TRL drops the row"
)


def convert_trl(given: Mapping[str, Any], rows: int | None = None) -> Conversion:
    """What options of ``trl dpo`` become.

    Args:
        given: Options as a user gave them.
        rows: Number of training rows, which shares of a run may need.

    Raises:
        InputError: If an option is unknown, or has a value that TRL refuses.
    """
    run = Conversion(OPTIONS, dict(given), rows)
    _merge(run)
    run.copy()
    run.set("trainer.devices", run["num_processes"])
    convert_training(run)
    _model(run)
    _quantisation(run)
    convert_sharding(run)
    convert_losses(run)
    _data(run)
    return run


def _merge(run: Conversion) -> None:
    """Let options that another one stands for be that one."""
    for old, new in {"torch_dtype": "dtype", "evaluation_strategy": "eval_strategy"}.items():
        if run[old] is not None:
            run.given.setdefault(new, run[old])
    for name, value in (run["model_init_kwargs"] or {}).items():
        if name in _KNOWN_INITIAL:
            run.given[_INITIAL.get(name, name.removeprefix("torch_"))] = value
        else:
            run.tell("model_init_kwargs", "none", f"{name}: `model.policy` has no such option")
    merge_accelerate(run)
    if run["bf16"] is None:
        run.given["bf16"] = not run["fp16"]


def _model(run: Conversion) -> None:
    if not run["model_name_or_path"]:
        run.tell("model_name_or_path", "none", "not given: set model.policy.path")
    run.set("model.policy.path", run["model_name_or_path"])
    run.set(
        "model.policy.revision", None if run["model_revision"] == "main" else run["model_revision"]
    )
    dtype = str(run["dtype"] or "auto").removeprefix("torch.")
    if dtype not in TYPES:
        raise InputError(f"dtype={dtype!r}: expected one of {TYPES}")
    run.set("model.policy.dtype", dtype)
    run.set("model.policy.attn_implementation", run["attn_implementation"] or "auto")
    run.set("model.policy.activation_checkpointing", run["gradient_checkpointing"])
    if run["use_peft"]:
        run.set("model.policy.lora", _lora(run))
    else:
        names = (name for name in run.given if name.startswith(("lora_", "use_rslora", "use_dora")))
        run.idle("without use_peft it does nothing", *names)
    if run["precompute_ref_log_probs"]:
        run.set("model.reference_cache", f"{run.tree['trainer']['default_root_dir']}/reference")
    if not run["sync_ref_model"]:
        run.idle("of sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps")
    else:
        if run["use_peft"] or run["precompute_ref_log_probs"]:
            raise InputError(
                "sync_ref_model=true goes neither with use_peft nor with precompute_ref_log_probs, "
                "in TRL as here: leave one of them out"
            )
        moves = {
            "alpha": run["ref_model_mixup_alpha"],
            "every_n_steps": run["ref_model_sync_steps"],
        }
        moving = {"class_path": _CALLBACKS, "init_args": moves}
        run.tree["trainer"]["callbacks"].append(moving)


def _quantisation(run: Conversion) -> None:
    kind, nested = run["bnb_4bit_quant_type"], run["use_bnb_nested_quant"]
    if run["load_in_4bit"] and run["load_in_8bit"]:
        raise InputError("load_in_4bit and load_in_8bit are both true: expected one of them")
    if run["load_in_4bit"]:
        quantise(run, "load_in_4bit", 4, kind, nested)
    if run["load_in_8bit"]:
        quantise(run, "load_in_8bit", 8, kind, nested)


def _lora(run: Conversion) -> dict[str, Any]:
    modules = run["lora_target_modules"]
    if modules is None:
        modules = ["q_proj", "v_proj"]
        why = "peft's choice for Llama, Mistral, Qwen and Gemma; name those of another model"
        run.tell("lora_target_modules", "near", why)
    if run["disable_dropout"] and run["lora_dropout"] and "lora_dropout" in run.given:
        run.tell("lora_dropout", "idle", "disable_dropout sets it to 0, there as here")
    if run["lora_task_type"] != "CAUSAL_LM":
        run.tell("lora_task_type", "none", "models here are causal: CAUSAL_LM")
    return {
        "r": run["lora_r"],
        "alpha": run["lora_alpha"],
        "dropout": 0.0 if run["disable_dropout"] else run["lora_dropout"],
        "target_modules": None if modules == ["all-linear"] else modules,
        "modules_to_save": run["lora_modules_to_save"],
        "use_rslora": run["use_rslora"],
        "use_dora": run["use_dora"],
    }


def _data(run: Conversion) -> None:
    _source(run)
    length = UNLIMITED if run["max_length"] is None else run["max_length"]
    prompt = run["max_prompt_length"]
    run.set("data.max_length", length)
    run.set("data.max_prompt_length", min(prompt or length - 1, length - 1))
    run.tell("max_length", "near", _DROPPED)
    if run["truncation_mode"] != "keep_start":
        why = "long prompts are cut on the left, responses on the right: set data.max_prompt_length"
        run.tell("truncation_mode", "none", why)
    run.set("data.invalid_rows", "drop")
    run.set("data.special_tokens", "control")
    multiple = run["pad_to_multiple_of"]
    run.set("data.pad_to_multiple", 1 if multiple in ("auto", None) else int(multiple))
    if run["test_split_size"]:
        _fraction(run, "test_split_size", run["test_split_size"])


def _fraction(run: Conversion, name: str, size: float) -> None:
    """Hold a share of the training rows out, or as many rows as a number above 1 says."""
    if size >= 1 and not run.rows:
        run.tell(name, "none", "a number of rows: give their share, or all of them as --rows")
        return
    run.set("data.validation_fraction", size if size < 1 else size / (run.rows or 1))


def _source(run: Conversion) -> None:
    sources = [_mixed(run, each) for each in run["datasets"] or []]
    if sources:
        run.set("data.streaming", run["streaming"])
        if run["dataset_name"]:
            run.tell("dataset_name", "idle", "TRL reads `datasets` instead")
    elif not run["dataset_name"]:
        run.tell("dataset_name", "none", "not given: set data.source")
    if len(sources) == 1:
        only = sources[0]
        run.set("data.source", only["source"])
        run.set("data.name", only.get("name"))
        run.set("data.train_split", only.get("split", "train"))
    else:
        run.set("data.source", sources or run["dataset_name"])


def _mixed(run: Conversion, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One of several data sets."""
    if not isinstance(entry, Mapping) or "path" not in entry:
        raise InputError(f"datasets: {entry!r}: expected a mapping with path")
    for name in ("data_dir", "data_files", "fraction"):
        if entry.get(name) is not None:
            run.tell("datasets", "none", f"{name}: name the files themselves as data.source")
    split = str(entry.get("split") or "train")
    if "[" in split:
        run.tell("datasets", "none", f"split {split!r}: `data.max_rows` takes the first rows")
        split = split.partition("[")[0]
    found = {"source": entry["path"], "name": entry.get("name"), "split": split}
    return {name: value for name, value in found.items() if value is not None}
