"""Lightning's LitLogger as configurations can name it."""

from __future__ import annotations

from lightning.pytorch.loggers import LitLogger as _LitLogger
from lightning.pytorch.loggers import Logger


class LitLogger(_LitLogger, Logger):
    """Lightning's, which 2.6 derives from Fabric's Logger, so that its own Trainer's is refused."""
