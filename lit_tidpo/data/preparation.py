"""Tokenised splits: cached, checked and reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.shapes import NUMBERS
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.data.whole_files import drop_damaged, remember

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raise it when the same options come to make other ids, so that old cache files are left alone.
_VERSION = 4
_IDS, _WEIGHTS = List(Value("int32")), List(Value("float32"))
_FEATURES = Features(
    {
        "prompt_ids": _IDS,
        "chosen_ids": _IDS,
        "rejected_ids": _IDS,
        "chosen_weights": _WEIGHTS,
        "rejected_weights": _WEIGHTS,
        **{name: Value("float32") for name in NUMBERS},
        "length": Value("int32"),
        "prompt_truncated": Value("bool"),
        "chosen_truncated": Value("bool"),
        "rejected_truncated": Value("bool"),
        "shifted": Value("bool"),
        "left_out": Value("string"),
        "guarded": Value("int32"),
        "index": Value("int64"),
        "problem": Value("string"),
    }
)


def fingerprint(data: Dataset, tokenise: PairTokenizer) -> str:
    """Name of the tokenised form of a split: the same in every process for the same content.

    Args:
        data: The split.
        tokenise: Tokenizer and lengths.

    Returns:
        Hexadecimal digest.
    """
    return str(Hasher.hash([_VERSION, data._fingerprint, tokenise.digest]))


def tokenise_split(
    data: Dataset, tokenise: PairTokenizer, cache_dir: str | None = None, processes: int = 1
) -> Dataset:
    """Tokenise a split, or take it from the cache files of an earlier run.

    Args:
        data: The split.
        tokenise: What tokenises rows.
        cache_dir: Folder for the cache files; None means that of ``datasets``.
        processes: Processes that share the work, each with a cache file of its own.

    Returns:
        One row of ids per row of ``data``; see :class:`~lit_tidpo.data.tokenization.PairTokenizer`.
    """
    name = fingerprint(data, tokenise)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"tokenised-{name}.arrow"
    drop_damaged(folder.glob(f"{file.stem}*.arrow"))
    tokenised = data.map(
        _tokenised_columns,
        batched=True,
        with_indices=True,
        remove_columns=data.column_names,
        features=_FEATURES,
        cache_file_name=str(file),
        new_fingerprint=name,
        num_proc=processes if processes > 1 else None,
        fn_kwargs={"tokenise": tokenise},
        desc="Tokenising",
    )
    remember(folder.glob(f"{file.stem}*.arrow"))
    return tokenised


def _tokenised_columns(
    columns: Mapping[str, list[Any]], numbers: list[int], tokenise: PairTokenizer
) -> dict[str, list[Any]]:
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    tokenised = tokenise.batch(rows, numbers)
    return {name: [row[name] for row in tokenised] for name in _FEATURES}


def usable_rows(
    data: Dataset, split: str, policy: InvalidRows, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, PreparationReport]:
    """Leave out the rows that cannot be trained on, and report what became of all of them.

    Args:
        data: Tokenised split.
        split: Its name.
        policy: ``raise`` at unusable rows, or ``drop`` them.
        tokenizer: Decodes the report's example.

    Returns:
        The usable rows and the report.

    Raises:
        InputError: If there are unusable rows and the policy is ``raise``, or no others.
    """
    report = PreparationReport(split)
    names = [name for name, kind in _FEATURES.items() if isinstance(kind, Value)]
    columns = data.select_columns(names)[:]  # far from all that a row holds
    for values in zip(*columns.values(), strict=True):
        report.add(dict(zip(columns, values, strict=True)))
    if report.shifted:
        report.show_shift(data[columns["shifted"].index(True)], tokenizer)
    report.check(policy)
    report.announce()
    if not report.problems:
        return data, report
    kept = [place for place, problem in enumerate(columns["problem"]) if not problem]
    return data.select(kept), report
