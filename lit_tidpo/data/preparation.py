"""Tokenised splits: cached, checked and reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value
from datasets.fingerprint import Hasher

from lit_tidpo.data.reports import InvalidRows, PreparationReport
from lit_tidpo.data.shapes import sides_of_columns
from lit_tidpo.data.tokenised import check_kind, features, sides_of
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.data.whole_files import drop_damaged, remember

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raise it when the same options come to make other ids, so that old cache files are left alone.
_VERSION = 6


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
    columns = features(sides_of_columns(data.column_names))
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
        features=columns,
        cache_file_name=str(file),
        new_fingerprint=name,
        num_proc=processes if processes > 1 else None,
        fn_kwargs={"tokenise": tokenise, "schema": columns.arrow_schema},
        desc="Tokenising",
    )
    remember(folder.glob(f"{file.stem}*.arrow"))
    return tokenised


def _tokenised_columns(
    columns: Mapping[str, list[Any]],
    numbers: list[int],
    tokenise: PairTokenizer,
    schema: pa.Schema,
) -> pa.Table:
    """Tokenise rows, as a table: of lists ``datasets`` would guess the types, and then cast."""
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    tokenised = tokenise.batch(rows, numbers)
    for number, row in zip(numbers, tokenised, strict=True):
        check_kind(row, sides_of(schema.names), number)
    return pa.Table.from_pylist(tokenised, schema)


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
    columns = features(sides_of(data.column_names)).items()
    names = [name for name, kind in columns if isinstance(kind, Value)]
    table = data.select_columns(names).with_format("arrow")[:]  # far from all that a row holds
    report.add_all(table)
    if report.shifted:
        report.show_shift(data[pc.index(table["shifted"], True).as_py()], tokenizer)
    report.check(policy)
    report.announce()
    if not report.problems:
        return data, report
    kept = np.flatnonzero(pc.equal(table["problem"], "").to_numpy())
    return data.select(kept), report
