"""Checkpoints that DeepSpeed wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lit_tidpo.errors import InputError, explained

_ENGINE = ("module", "optimizer", "lr_scheduler", "param_shapes", "frozen_param_shapes")


def is_zero_folder(path: Path) -> bool:
    """Whether a folder is a checkpoint of DeepSpeed's."""
    return (path / "latest").is_file()


def read_zero_folder(path: Path) -> dict[str, Any]:
    """Put a checkpoint together that DeepSpeed wrote part by part, by its own code.

    Args:
        path: The folder.

    Returns:
        What a checkpoint file would hold, without the optimizer's state, on the CPU, in fp32.

    Raises:
        InputError: If it is incomplete, or DeepSpeed is not installed.
    """
    try:
        from deepspeed.runtime.fp16 import loss_scaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils import zero_to_fp32
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError as error:
        raise InputError(
            f"checkpoint {str(path)!r} is of DeepSpeed: pip install 'lit-tidpo[deepspeed]'"
        ) from error
    known = [loss_scaler.LossScaler, ZeroStageEnum, fragment_address]
    # DeepSpeed would load pickles, which can run anything; PyTorch lets that be forbidden.
    forbid = patch.dict("os.environ", TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")
    with (
        explained(f"checkpoint {str(path)!r} cannot be put together"),
        forbid,
        torch.serialization.safe_globals(known),
    ):
        tag = (path / "latest").read_text(encoding="utf-8").strip()
        part = min((path / tag).glob("*model_states.pt"))
        rest: dict[str, Any] = torch.load(part, map_location="cpu", weights_only=True)
        weights = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(path))
    kept = {name: value for name, value in rest.items() if name not in _ENGINE}
    return {**kept, "state_dict": dict(weights)}
