"""What transformers' ``TrainingArguments`` become: Trainer, optimizer, precision, checkpoints."""

from __future__ import annotations

import math
from typing import Any

from lit_tidpo.converting.options import Conversion
from lit_tidpo.errors import InputError

_ADAMW = {"adamw_torch", "adamw_torch_fused", "adamw_hf"}
_OPTIMIZERS = {"sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop", "adafactor": "Adafactor"}
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_LOGGERS = {"tensorboard": "TensorBoardLogger", "wandb": "WandbLogger", "mlflow": "MLFlowLogger"}
_ROWS = "give the number of training rows as --rows, or max_steps"


def convert_training(run: Conversion) -> None:
    """Set what ``TrainingArguments`` say of a run.

    Raises:
        InputError: If a number is out of range, or fp16 and bf16 are both asked for.
    """
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if run[name] < 1:
            raise InputError(f"{name}={run[name]}: expected 1 or more")
    for part in (_duration, _optimizer, _schedule, _precision, _devices, _logging, _validation):
        part(run)
    run.set("trainer.callbacks", _checkpoints(run))
    run.set("model.seed", run["seed"])
    run.set("data.seed", run["seed"] if run["data_seed"] is None else run["data_seed"])
    run.tell(
        "data_seed" if "data_seed" in run.given else "seed", "near", "draws other numbers here"
    )
    by_length = run["group_by_length"] or run["train_sampling_strategy"] == "group_by_length"
    run.set("data.group_by_length", by_length)
    if run["train_sampling_strategy"] == "sequential":
        why = "rows are shuffled in each epoch: leave it out"
        run.tell("train_sampling_strategy", "none", why)
    run.set("model.policy.compile_layers", run["torch_compile"])
    if run.tree["data"]["streaming"]:
        _stream(run)


def _stream(run: Conversion) -> None:
    """What a stream cannot: it has one order."""
    if run["dataloader_num_workers"] > 1:
        run.set("data.num_workers", 1)
        run.tell("dataloader_num_workers", "near", "a stream is read by 1")
    if run.tree["data"]["group_by_length"]:
        run.set("data.group_by_length", False)
        name = "group_by_length" if run["group_by_length"] else "train_sampling_strategy"
        run.tell(name, "none", "the lengths of a stream are not known: set streaming to false")


def steps(run: Conversion) -> int | None:
    """Optimizer steps of the whole run; None where they depend on an unknown number of rows."""
    if run["max_steps"] > 0:
        return int(run["max_steps"])
    each, epochs = _steps_of_epoch(run), float(run["num_train_epochs"])
    return None if each is None else math.ceil(epochs * each)


def _steps_of_epoch(run: Conversion) -> int | None:
    if run.rows is None:
        return None
    size = int(run["per_device_train_batch_size"]) * int(run.tree["trainer"]["devices"])
    batches = run.rows // size if run["dataloader_drop_last"] else math.ceil(run.rows / size)
    return max(1, math.ceil(batches / int(run["gradient_accumulation_steps"])))


def _in_steps(run: Conversion, name: str, number: float, otherwise: int) -> int:
    """A number of steps, or the steps that a share of the run, below 1, is.

    Where nobody knows how many the run has it is ``otherwise``, with a word.
    """
    if number >= 1:
        return int(number)
    total = steps(run)
    if total is None:
        why = f"a share of the run needs its steps: {_ROWS}; takes {otherwise}"
        run.tell(name, "none", why)
        return otherwise
    return math.ceil(number * total)


def _duration(run: Conversion) -> None:
    run.set("trainer.default_root_dir", run["output_dir"] or "trainer_output")
    run.set("trainer.devices", run.tree.get("trainer", {}).get("devices", 1))
    epochs, total = run["num_train_epochs"], run["max_steps"]
    if total <= 0 and epochs != int(epochs):
        known = steps(run)
        if known is None:
            run.tell("num_train_epochs", "none", f"part of an epoch needs its steps: {_ROWS}")
        total = known or -1
    run.set("trainer.max_steps", total)
    run.set("trainer.max_epochs", -1 if total > 0 else math.ceil(epochs))


def _optimizer(run: Conversion) -> None:
    name, settings = run["optim"], {"lr": run["learning_rate"]}
    if name not in _ADAMW:
        run.idle("of AdamW alone", "adam_beta1", "adam_beta2", "adam_epsilon")
    if name in _ADAMW:
        kind = "AdamW"
        settings |= {
            "betas": [run["adam_beta1"], run["adam_beta2"]],
            "eps": run["adam_epsilon"],
            "weight_decay": run["weight_decay"],
        }
        if name == "adamw_torch_fused" and not run["fp16"]:  # which leaves clipping to others
            settings["fused"] = True
    elif name in _OPTIMIZERS:
        kind = _OPTIMIZERS[name]
        settings["weight_decay"] = run["weight_decay"]
        if name == "adafactor":
            run.tell("optim", "near", "torch's Adafactor, whose steps differ from transformers'")
    else:
        kind, settings = "AdamW", settings | {"weight_decay": run["weight_decay"]}
        why = "takes torch.optim.AdamW; name another class of yours as `model.optimizer`"
        run.tell("optim", "none", why)
    if not run["weight_decay"] and "weight_decay" in run.given:
        run.tell("weight_decay", "same", "")
    run.set("model.optimizer", {"class_path": f"torch.optim.{kind}", "init_args": settings})


def _schedule(run: Conversion) -> None:
    name = run["lr_scheduler_type"]
    if name not in _SCHEDULES:
        run.tell("lr_scheduler_type", "none", "takes `cosine`; `model.lr_schedule` has no other")
    run.set("model.lr_schedule", _SCHEDULES.get(name, "cosine"))
    warmup = run["warmup_steps"] or 0
    if warmup:
        run.idle("warmup_steps counts", "warmup_ratio")
    option = "warmup_ratio" if not warmup and run["warmup_ratio"] else "warmup_steps"
    warmup = warmup or run["warmup_ratio"] or 0
    if warmup < 0:
        raise InputError(f"{option}={warmup}: expected 0 or more")
    if name == "constant":
        if warmup:
            run.tell(option, "idle", "the schedule `constant` has no warm-up there")
        warmup = 0
    run.set("model.warmup_steps", _in_steps(run, option, warmup, 0) if warmup else 0)


def _precision(run: Conversion) -> None:
    """Mixed precision, in which ``bf16`` counts where both are false or absent."""
    if run["fp16"] and run["bf16"]:
        raise InputError("fp16 and bf16 are both true: expected one of them")
    names = {(True, False): "bf16-mixed", (False, True): "16-mixed"}
    run.set("trainer.precision", names.get((bool(run["bf16"]), run["fp16"]), "32-true"))
    run.set("trainer.gradient_clip_val", run["max_grad_norm"] or None)


def _devices(run: Conversion) -> None:
    run.set("trainer.accelerator", "cpu" if run["use_cpu"] or run["no_cuda"] else "auto")


def _logging(run: Conversion) -> None:
    if run["logging_strategy"] != "steps":
        run.tell("logging_strategy", "near", "logged every `logging_steps` steps")
    every = _in_steps(run, "logging_steps", run["logging_steps"], 10)
    run.set("trainer.log_every_n_steps", max(1, every))
    named = run["report_to"] or []
    loggers = []
    for name in [named] if isinstance(named, str) else named:
        if name in _LOGGERS:
            loggers.append(_logger(run, name))
        elif name != "none":
            why = f"{name}: takes CSV; name a logger as `trainer.logger`"
            run.tell("report_to", "none", why)
    csv = "lightning.pytorch.loggers.CSVLogger"
    folder = run.tree["trainer"]["default_root_dir"]
    run.set("trainer.logger", loggers or [{"class_path": csv, "init_args": {"save_dir": folder}}])


def _logger(run: Conversion, name: str) -> dict[str, Any]:
    settings = {"save_dir": run.tree["trainer"]["default_root_dir"]}
    if name == "wandb":
        settings |= {"name": run["run_name"], "project": run["project"]}
    if name == "mlflow":
        settings |= {"run_name": run["run_name"]}
    return {"class_path": f"lightning.pytorch.loggers.{_LOGGERS[name]}", "init_args": settings}


def _validation(run: Conversion) -> None:
    """Validation every some steps, which Lightning counts in batches, or at the end of epochs."""
    strategy = run["eval_strategy"]
    run.set("trainer.num_sanity_val_steps", -1 if run["eval_on_start"] else 0)
    if strategy != "steps":
        run.idle(f"with eval_strategy {strategy} it does nothing", "eval_steps")
    if strategy == "no":
        run.set("trainer.limit_val_batches", 0 if not run["eval_on_start"] else None)
        if run["eval_on_start"]:  # and never again
            run.set("trainer.check_val_every_n_epoch", 10**9)
        return
    if strategy == "epoch":
        run.set("trainer.check_val_every_n_epoch", 1)
        return
    name = "logging_steps" if run["eval_steps"] is None else "eval_steps"
    every = _in_steps(run, name, run[name], 500)
    batches = max(1, every) * run["gradient_accumulation_steps"]
    run.set("trainer.val_check_interval", batches)
    run.set("trainer.check_val_every_n_epoch", None)


def _checkpoints(run: Conversion) -> list[dict[str, Any]]:
    """The checkpoints along the run, and the one at its end that both trainers write."""
    common = {"save_weights_only": run["save_only_model"]}
    end = {**common, "filename": "end-{epoch}-{step}", "save_on_train_epoch_end": True}
    strategy, limit = run["save_strategy"], run["save_total_limit"]
    settings: dict[str, Any] = {**common, "filename": "{epoch}-{step}"}
    if run["load_best_model_at_end"] or strategy == "best":
        metric = (run["metric_for_best_model"] or "loss").removeprefix("eval_")
        greater = run["greater_is_better"]
        greater = metric != "loss" if greater is None else greater
        metric = "loss/total" if metric == "loss" else metric
        settings |= {"monitor": f"val/{metric}", "mode": "max" if greater else "min"}
        settings |= {"save_top_k": limit or (1 if strategy == "best" else -1)}
    else:
        run.idle("no best checkpoint is asked for", "metric_for_best_model", "greater_is_better")
        newest = {"monitor": "step", "mode": "max", "save_top_k": limit}
        settings |= newest if limit else {"save_top_k": -1}
    if strategy != "steps":
        run.idle(f"with save_strategy {strategy} it does nothing", "save_steps")
    if strategy == "no":
        return [_callback(end)]
    if strategy == "epoch":
        settings["every_n_epochs"] = 1
        settings["save_on_train_epoch_end"] = "val/" not in settings.get("monitor", "")
    elif strategy == "steps" and "val/" not in settings.get("monitor", ""):
        every = _in_steps(run, "save_steps", run["save_steps"], 500)
        settings["every_n_train_steps"] = max(1, every)
    return [_callback(settings), _callback(end)]


def _callback(settings: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": settings}
