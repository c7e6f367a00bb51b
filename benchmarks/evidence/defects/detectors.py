"""Detectors, one for each seed, and such as have never seen one kind of defect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.evidence.defects.rows import MAX_LENGTH, TOKENIZER
from lit_tidpo.assets.build.detector import train_detector
from lit_tidpo.locations import locate


def trained_detector(folder: Path, seed: int, without: str | None = None) -> str:
    """Train a detector on the training modules.

    Args:
        folder: Where trained detectors are kept.
        seed: Seed of weights, order and dropout.
        without: A kind of defect whose pairs are left out.

    Returns:
        Its folder; one that is already there is not trained again.
    """
    name = f"detector-seed-{seed}" + (f"-without-{without}" if without else "")
    target, part = folder / name, folder / f"{name}.part"
    if not target.exists():
        source = _data_without(without, folder / f"{name}.data") if without else None
        train_detector(
            part, source or "builtin:stdlib_defects", TOKENIZER, max_length=MAX_LENGTH, seed=seed
        )
        part.rename(target)  # an interrupted training is never taken for a whole one
        if source is not None:
            shutil.rmtree(source)
    return str(target)


def _data_without(kind: str, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        file = Path(locate("builtin:stdlib_defects")) / f"{split}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["defect"] != kind]
        (folder / file.name).write_text("\n".join(kept) + "\n", encoding="utf-8")
    return str(folder)
