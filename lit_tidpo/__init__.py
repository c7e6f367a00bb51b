"""TI-DPO for PyTorch Lightning: token-importance guided preference optimisation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_tidpo.data.datamodule import PreferenceDataModule
    from lit_tidpo.explaining.explain import explain
    from lit_tidpo.modules.preference import PreferenceModule
    from lit_tidpo.modules.sft import SFTModule

__version__ = "0.1.0"

__all__ = ["PreferenceDataModule", "PreferenceModule", "SFTModule", "explain"]

# Loaded on first use: `lit_tidpo.functional` imports torch alone, without lightning.
_HOMES = {
    "PreferenceDataModule": "lit_tidpo.data.datamodule",
    "PreferenceModule": "lit_tidpo.modules.preference",
    "SFTModule": "lit_tidpo.modules.sft",
    "explain": "lit_tidpo.explaining.explain",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
