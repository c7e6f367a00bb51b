"""``lit-tidpo export``: write a checkpoint's policy for ``AutoModelForCausalLM``."""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from lit_tidpo.models.export import export_checkpoint


def run(args: list[str]) -> None:
    """Export; see :func:`~lit_tidpo.models.export.export_checkpoint`."""
    folder = auto_cli(export_checkpoint, args=args[1:], as_positional=True)
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    sys.stdout.write(
        f"exported {size / 1e6:,.1f} MB: AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
    )
