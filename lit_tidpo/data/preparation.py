"""Tokenised splits: cached, checked and reported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import datasets
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_tidpo.data.rows import NUMBERS
from lit_tidpo.data.tokenization import PairTokenizer
from lit_tidpo.data.whole_files import drop_damaged, remember
from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

InvalidRows = Literal["raise", "drop"]

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
_EXAMPLE_TOKENS = 8


@dataclass
class PreparationReport:
    """What became of the rows of a split.

    Attributes:
        split: Name of the split.
        rows: Rows that were read.
        prompts_truncated: Usable pairs whose prompt was cut.
        chosen_truncated: Usable pairs whose chosen response was cut.
        rejected_truncated: Usable pairs whose rejected response was cut.
        shifted: Usable pairs whose responses start before the end of the prompt's text.
        shifted_example: Text around the start of the responses in the first such pair.
        left_out: Usable pairs of which the chat template leaves out text.
        left_out_example: The beginning of that text in the first such pair.
        guarded: Special tokens that stand in the text of messages.
        problems: Unusable rows by what is wrong with them.
        first: Position of the first row with each problem.
    """

    split: str
    rows: int = 0
    prompts_truncated: int = 0
    chosen_truncated: int = 0
    rejected_truncated: int = 0
    shifted: int = 0
    shifted_example: str = ""
    left_out: int = 0
    left_out_example: str = ""
    guarded: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        """Count a tokenised row."""
        self.rows += 1
        if row["problem"]:
            self.problems[row["problem"]] += 1
            self.first.setdefault(row["problem"], row["index"])
            return
        self.prompts_truncated += row["prompt_truncated"]
        self.chosen_truncated += row["chosen_truncated"]
        self.rejected_truncated += row["rejected_truncated"]
        self.shifted += row["shifted"]
        self.left_out += bool(row["left_out"])
        self.guarded += row["guarded"]
        self.left_out_example = self.left_out_example or row["left_out"]
        if row["shifted"] and not self.shifted_example:
            before = tokenizer.decode(row["prompt_ids"][-_EXAMPLE_TOKENS:])
            after = tokenizer.decode(row["chosen_ids"][:_EXAMPLE_TOKENS])
            self.shifted_example = f"{before!r} | {after!r}"

    def reset(self) -> None:
        """Count from zero again."""
        vars(self).update(vars(PreparationReport(self.split)))

    @property
    def usable(self) -> int:
        """Pairs that can be trained on."""
        return self.rows - self.problems.total()

    def describe_problems(self) -> str:
        """The unusable rows, such as ``2 empty response (first: row 7)``."""
        return ", ".join(
            f"{count} {problem} (first: row {self.first[problem]})"
            for problem, count in self.problems.most_common()
        )

    def check(self, policy: InvalidRows) -> None:
        """Apply the policy for unusable rows.

        Args:
            policy: ``raise`` or ``drop``.

        Raises:
            InputError: If there are unusable rows and the policy is ``raise``, or no others.
        """
        if self.problems and policy == "raise":
            raise InputError(
                f"{self.problems.total()} of {self.rows} rows of split {self.split!r} cannot be "
                f"used: {self.describe_problems()}, counted from 0; mend them or set "
                "invalid_rows='drop'"
            )
        if not self.usable:
            raise InputError(
                f"split {self.split!r} has no usable row: "
                f"{self.describe_problems() or 'it is empty'}"
            )

    def announce(self) -> None:
        """Tell what was cut, moved or dropped, as a warning if anything was."""
        cut = {
            "prompt": self.prompts_truncated,
            "chosen": self.chosen_truncated,
            "rejected": self.rejected_truncated,
        }
        parts = [f"split {self.split!r}: {self.usable} pairs"]
        if any(cut.values()):
            parts.append("truncated: " + ", ".join(f"{n} {side}" for side, n in cut.items() if n))
        if self.problems:
            parts.append(f"dropped: {self.describe_problems()}")
        if self.guarded:
            parts.append(
                f"{self.guarded} special tokens in the text of messages are read as text: set "
                "data.special_tokens=control if they are to be control tokens"
            )
        if self.left_out:
            parts.append(
                f"the chat template leaves out text of {self.left_out} pairs, for example "
                f"{self.left_out_example!r}: the model does not see it unless data.chat_template "
                "renders it"
            )
        if self.shifted:
            parts.append(
                f"the prompt's tokens do not begin those of prompt and response in {self.shifted} "
                "pairs, so their responses start at the end of the shared tokens, for example "
                f"{self.shifted_example}"
            )
        tell = rank_zero_warn if len(parts) > 1 else rank_zero_info
        tell("; ".join(parts))


def fingerprint(data: Dataset, tokenise: PairTokenizer) -> str:
    """Name of the tokenised form of a split: the same in every process for the same content.

    Args:
        data: The split.
        tokenise: Tokenizer and lengths.

    Returns:
        Hexadecimal digest.
    """
    tokenizer, options = tokenise.tokenizer, tokenise.options
    content = {
        "version": _VERSION,
        "data": data._fingerprint,
        "tokenizer": _tokenizer_content(tokenizer),
        "special": [
            *map(str, tokenizer.all_special_tokens),
            tokenizer.bos_token,
            tokenizer.eos_token,
        ],
        "chat_template": tokenizer.chat_template,
        "special_tokens": options.special_tokens,
        "max_length": options.max_length,
        "max_prompt_length": options.prompt_limit,
    }
    return str(Hasher.hash(json.dumps(content, sort_keys=True)))


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        return [type(tokenizer).__qualname__, tokenizer.get_vocab()]
    content = json.loads(backend.to_str())
    # Earlier calls leave their padding and truncation there; neither is used here.
    return {key: part for key, part in content.items() if key not in {"padding", "truncation"}}


def tokenise_split(data: Dataset, tokenise: PairTokenizer, cache_dir: str | None = None) -> Dataset:
    """Tokenise a split, or take it from the cache file of an earlier run.

    Args:
        data: The split.
        tokenise: What tokenises a row.
        cache_dir: Folder for the cache file; None means that of ``datasets``.

    Returns:
        One row of ids per row of ``data``; see :class:`~lit_tidpo.data.tokenization.PairTokenizer`.
    """
    name = fingerprint(data, tokenise)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"tokenised-{name}.arrow"
    drop_damaged([file])
    tokenised = data.map(
        tokenise,
        with_indices=True,
        remove_columns=data.column_names,
        features=_FEATURES,
        cache_file_name=str(file),
        new_fingerprint=name,
        desc="Tokenising",
    )
    remember([file])
    return tokenised


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
    rows: Iterable[dict[str, Any]] = data
    kept = []
    for position, row in enumerate(rows):
        report.add(row, tokenizer)
        if not row["problem"]:
            kept.append(position)
    report.check(policy)
    report.announce()
    return (data.select(kept) if report.problems else data), report
