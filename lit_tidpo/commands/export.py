"""``lit-tidpo export``: write a checkpoint's policy for ``AutoModelForCausalLM``."""

from __future__ import annotations

from jsonargparse import auto_cli

from lit_tidpo.models.export import export_checkpoint


def run(args: list[str]) -> None:
    """Export; see :func:`~lit_tidpo.models.export.export_checkpoint`."""
    auto_cli(export_checkpoint, args=args[1:], as_positional=True)
