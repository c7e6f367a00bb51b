"""``lit-tidpo export``: write a checkpoint's policy for ``AutoModelForCausalLM``."""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from lit_tidpo.models.export import export_checkpoint


def run(args: list[str]) -> None:
    """Export; see :func:`~lit_tidpo.models.export.export_checkpoint`."""
    words = ["--adapter=true" if word == "--adapter" else word for word in args[1:]]
    folder = auto_cli(export_checkpoint, args=words, as_positional=True)
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    alone = (folder / "adapter_config.json").exists()
    how = "PeftModel.from_pretrained(base, " if alone else "AutoModelForCausalLM.from_pretrained("
    sys.stdout.write(f"exported {size / 1e6:,.1f} MB: {how}{str(folder)!r})\n")
