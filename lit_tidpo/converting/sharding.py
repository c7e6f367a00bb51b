"""How another trainer shares a run out: FSDP's options, files of DeepSpeed and of accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_tidpo.converting.options import Conversion
from lit_tidpo.converting.reading import read_file
from lit_tidpo.errors import InputError

_FSDP2 = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"tensor_parallel_size": 1},
}
_OFFLOAD = "nothing is offloaded to the CPU: takes it without"
_PACKAGED: dict[str, dict[str, Any]] = {
    "single_gpu": {"distributed_type": "NO", "num_processes": 8},
    "multi_gpu": {"distributed_type": "MULTI_GPU", "num_processes": 8},
    **{f"fsdp{version}": {"distributed_type": "FSDP", "num_processes": 8} for version in (1, 2)},
    **{
        f"zero{stage}": {
            "distributed_type": "DEEPSPEED",
            "num_processes": 8,
            "deepspeed_config": {"zero_stage": stage},
        }
        for stage in (1, 2, 3)
    },
}
"""What the files of accelerate say that TRL brings along."""


_LAUNCHERS = {
    "distributed_type": (
        "accelerate",
        "lit-tidpo convert accelerate launch --config_file {} dpo.py --config TRAINING.yaml",
    ),
    "zero_optimization": (
        "DeepSpeed",
        "lit-tidpo convert trl dpo --config TRAINING.yaml --deepspeed {}",
    ),
}
"""Whose file one with this option is, and what converts it with the run that it is of."""


def check_trains(given: Mapping[str, Any], path: str) -> None:
    """Refuse a file that says how a run is shared out, but not what is trained.

    Args:
        given: What it holds.
        path: What the user calls it.

    Raises:
        InputError: If it is one.
    """
    for option, (whose, line) in _LAUNCHERS.items():
        if option in given:
            raise InputError(
                f"{path!r} is a file of {whose}, which says how a run is shared out, but not what "
                f"is trained: give it beside what says that: {line.format(path)}"
            )


def merge_accelerate(run: Conversion) -> None:
    """Let a file of accelerate stand for the options of the trainer that it sets."""
    if not run["accelerate_config"]:
        return
    found = _PACKAGED.get(str(run["accelerate_config"])) or _settings(run, "accelerate_config")
    if found is None:
        return
    if int(found.get("num_machines", 1)) > 1:
        why = "num_machines: set trainer.num_nodes, and trainer.devices of one (docs/strategies.md)"
        run.tell("accelerate_config", "none", why)
    kind = str(found.get("distributed_type", "NO")).upper()
    processes = 1 if kind == "NO" else int(found.get("num_processes", 1))
    run.given.setdefault("num_processes", processes)
    if kind == "FSDP":
        run.given.setdefault("fsdp", "full_shard")
        run.given.setdefault("fsdp_config", found.get("fsdp_config") or {})
    elif kind == "DEEPSPEED":
        theirs = found.get("deepspeed_config") or {}
        zero = {
            "stage": theirs.get("zero_stage", 2),
            **{
                part: {"device": theirs.get(f"{part}_device", "none")}
                for part in ("offload_optimizer", "offload_param")
            },
        }
        named = theirs.get("deepspeed_config_file")
        run.given.setdefault("deepspeed", named or {"zero_optimization": zero})


def convert_sharding(run: Conversion) -> None:
    """Set the strategy, once precision, types and quantisation are set."""
    if run["deepspeed"]:
        _deepspeed(run)
    if run["fsdp"] not in (None, "", False, []):
        _fsdp(run)
    elif run["fsdp_config"]:
        run.idle("without fsdp it does nothing", "fsdp_config")


def _deepspeed(run: Conversion) -> None:
    found = _settings(run, "deepspeed")
    if found is None:
        return
    zero = found.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"deepspeed: zero_optimization.stage={stage!r}: expected 0 to 3")
    parts = [zero.get(name) or {} for name in ("offload_optimizer", "offload_param")]
    if any(str(part.get("device", "none")) != "none" for part in parts):
        run.tell("deepspeed", "none", _OFFLOAD)
    if not stage:
        run.set("trainer.strategy", "ddp")
        return
    types = (run.tree["trainer"]["precision"], run.tree["model"]["policy"]["dtype"])
    if types == ("32-true", "float32"):
        _share(run, "deepspeed", f"deepspeed_stage_{stage}")
    else:
        _share(run, "deepspeed", _FSDP2)
        run.tell("deepspeed", "near", "FSDP2, which shares all out; DeepSpeed is for fp32 here")


def _fsdp(run: Conversion) -> None:
    given = run["fsdp"]
    words = given if isinstance(given, list) else str(given).replace(",", " ").split()
    config = (_settings(run, "fsdp_config") if run["fsdp_config"] else None) or {}
    config = {name.removeprefix("fsdp_"): value for name, value in config.items()}
    if "no_shard" in words:
        run.set("trainer.strategy", "ddp")
        return
    _share(run, "fsdp", _FSDP2)
    if any("hybrid" in word or word == "shard_grad_op" for word in words):
        run.tell("fsdp", "near", "weights are shared out, too, over all devices")
    if "offload" in words:
        run.tell("fsdp", "none", _OFFLOAD)
    if config.get("offload_params") or config.get("cpu_offload"):
        run.tell("fsdp_config", "none", _OFFLOAD)
    if config.get("activation_checkpointing"):
        run.set("model.policy.activation_checkpointing", True)


def _share(run: Conversion, name: str, strategy: Any) -> None:
    if run.tree["model"]["policy"].get("quantization"):
        run.set("trainer.strategy", "ddp")
        run.tell(name, "none", "quantised weights are not shared out: takes `ddp`")
    else:
        run.set("trainer.strategy", strategy)


def _settings(run: Conversion, name: str) -> dict[str, Any] | None:
    """A mapping that is given itself, or as a file; without the file there is a word."""
    given = run[name]
    if isinstance(given, Mapping):
        return dict(given)
    if not Path(str(given)).expanduser().is_file():
        run.tell(name, "none", f"{given!r} is not here: convert where it is, or set the strategy")
        return None
    return read_file(str(given))
