"""Where commands without a Trainer compute."""

from __future__ import annotations

import torch


def default_device() -> str:
    """``cuda`` where there is a GPU, otherwise ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
