"""Checkpoints that DeepSpeed wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lit_tidpo.errors import InputError, explained

_ENGINE = ("module", "optimizer", "lr_scheduler", "param_shapes", "frozen_param_shapes")


def is_zero_folder(path: Path) -> bool:
    """Whether a folder is a checkpoint of DeepSpeed's."""
    return (path / "latest").is_file()


def zero_layout(path: Path) -> tuple[int, int]:
    """Stage of ZeRO that wrote a folder, and among how many processes."""
    part = _first_part(path)
    settings = part["ds_config"].get("zero_optimization") or {}
    return int(settings.get("stage", 0)), int(part["dp_world_size"])


def read_zero_state(path: Path) -> dict[str, Any]:
    """What a checkpoint file would hold, without weights and the optimizer's state.

    Args:
        path: The folder.

    Raises:
        InputError: If it is incomplete, or DeepSpeed is not installed.
    """
    return {name: value for name, value in _first_part(path).items() if name not in _ENGINE}


def read_zero_folder(path: Path) -> dict[str, Any]:
    """Put a checkpoint together that DeepSpeed wrote part by part, by its own code.

    Args:
        path: The folder.

    Returns:
        What a checkpoint file would hold, without the optimizer's state, on the CPU, in fp32.

    Raises:
        InputError: If it is incomplete, or DeepSpeed is not installed.
    """
    rest = read_zero_state(path)
    with _without_pickles(path):
        from deepspeed.utils import zero_to_fp32

        weights = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(path))
    return {**rest, "state_dict": dict(weights)}


def _tag(path: Path) -> str:
    """The folder inside, which ``latest`` names once all parts are written."""
    return (path / "latest").read_text(encoding="utf-8").strip()


def _first_part(path: Path) -> dict[str, Any]:
    with _without_pickles(path):
        part = min((path / _tag(path)).glob("*model_states.pt"))
        found: dict[str, Any] = torch.load(part, map_location="cpu", weights_only=True)
    return found


@contextmanager
def _without_pickles(path: Path) -> Iterator[None]:
    """Let PyTorch read what DeepSpeed writes, and nothing that could run.

    DeepSpeed would load pickles, which can run anything; PyTorch lets that be forbidden.
    """
    try:
        from deepspeed.runtime.fp16 import loss_scaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError as error:
        raise InputError(
            f"checkpoint {str(path)!r} is of DeepSpeed: pip install 'lit-tidpo[deepspeed]'"
        ) from error
    known = [loss_scaler.LossScaler, ZeroStageEnum, fragment_address]
    with (
        explained(f"checkpoint {str(path)!r} cannot be put together"),
        patch.dict("os.environ", TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"),
        torch.serialization.safe_globals(known),
    ):
        yield
