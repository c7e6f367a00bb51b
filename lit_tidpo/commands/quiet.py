"""What other libraries say and a user can do nothing about; ``--debug`` shows it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

_WARNINGS = (
    r".*LeafSpec.* is deprecated",  # lightning 2.6 under torch 2.13
    r".*does not have many workers",  # batches of tokens that are there already
    r"Consider setting `persistent_workers",
    r"When using `Trainer\(accumulate_grad_batches != 1\)` and overriding",  # steps are meant
    r"The `srun` command is available",
    r"When using the `ThroughputMonitor`, you need to define",  # of operations, which we count not
    r"`is_gradient_checkpointing` is deprecated",  # peft under transformers 5
)
_LINES = ("💡 Tip", "TPU available", "HPU available", "Seed set to")
_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LINES)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without the line of code that gave it."""
    return f"lit-tidpo: warning: {' '.join(str(message).split())}\n"


@contextmanager
def quiet() -> Iterator[None]:
    """Hide tips, deprecations of other libraries' own, and bars of what takes a moment.

    Warnings come in one line each.
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message)
        stack.callback(setattr, warnings, "formatwarning", warnings.formatwarning)
        warnings.formatwarning = _one_line
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_is_news)
            stack.callback(logging.getLogger(name).removeFilter, _is_news)
        if "torch" in sys.modules:  # the other commands load nothing
            stack.enter_context(_without_bars())
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    """Load weights without a bar, and tokenise without one where nobody watches."""
    datasets: Any = import_module("datasets")
    hub: Any = import_module("huggingface_hub.utils")
    weights: Any = import_module("transformers.utils.logging")
    loads, prepares = weights.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    weights.disable_progress_bar()
    hub.enable_progress_bars()  # downloads keep theirs, which the line above put out
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if loads:
            weights.enable_progress_bar()
        if prepares:
            datasets.enable_progress_bars()
