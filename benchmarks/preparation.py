"""How fast pairs are prepared, ours and TRL's in turn.

``python -m benchmarks.preparation DATA TOKENIZER``: a JSON Lines file of pairs and a folder. Both
read the same rows on one thread, each with a fresh cache and a loaded tokenizer; processor time
counts, as other work on the machine does not slow it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ["TOKENIZERS_PARALLELISM"] = "false"

_REPEATS = 5


def ours(rows: list[dict[str, str]], tokenizer: str, folder: str) -> Callable[[], object]:
    """Our preparation, ready to be called."""
    from lit_tidpo.data import PreferenceDataModule

    data = PreferenceDataModule(rows, tokenizer, cache_dir=folder, invalid_rows="drop")
    _ = data.tokenizer
    return data.prepare_data


def theirs(rows: list[dict[str, str]], tokenizer: str, folder: str) -> Callable[[], object]:
    """What TRL's trainer does of a data set before its first step."""
    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    options = DPOConfig(output_dir=folder, report_to=[], use_cpu=True, bf16=False)
    data = datasets.Dataset.from_list(rows)
    trainer = SimpleNamespace(_tokenizer=loaded, args=options)
    return lambda: DPOTrainer._prepare_dataset(trainer, data, loaded, options, "train")


def main(data: str, tokenizer: str) -> None:
    """Measure both in turn and print the medians."""
    import datasets

    datasets.disable_progress_bars()
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    rows = [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in rows]
    found: dict[str, list[float]] = {}
    for _ in range(_REPEATS):
        for make in (ours, theirs):
            with tempfile.TemporaryDirectory() as folder:
                prepare = make(rows, tokenizer, folder)
                start = time.process_time()
                prepare()
                found.setdefault(make.__name__, []).append(time.process_time() - start)
    for name, seconds in found.items():
        rates = sorted(len(rows) / each for each in seconds)
        print(
            f"{name}: {statistics.median(rates):.0f} rows a second ({rates[0]:.0f}-{rates[-1]:.0f})"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
