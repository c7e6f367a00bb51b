"""What became of the rows of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_tidpo.data.tokenised import sides_of
from lit_tidpo.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

InvalidRows = Literal["raise", "drop"]

_EXAMPLE_TOKENS = 8


@dataclass
class PreparationReport:
    """What became of the rows of a split.

    Attributes:
        split: Name of the split.
        rows: Rows that were read.
        truncated: Usable rows of which a part was cut, by the part: ``prompt``, ``chosen``, ...
        shifted: Usable rows whose responses start before the end of the prompt's text.
        shifted_example: Text around the start of the responses in the first such row.
        left_out: Usable rows of which the chat template leaves out text.
        left_out_example: The beginning of that text in the first such row.
        is_single: Whether the rows are single responses.
        labels: Usable single responses by their label.
        guarded: Special tokens that stand in the text of messages.
        problems: Unusable rows by what is wrong with them.
        first: Position of the first row with each problem.
    """

    split: str
    rows: int = 0
    truncated: Counter[str] = field(default_factory=Counter)
    shifted: int = 0
    shifted_example: str = ""
    left_out: int = 0
    left_out_example: str = ""
    guarded: int = 0
    is_single: bool = False
    labels: Counter[bool] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a tokenised row, of which no ids are looked at."""
        self.rows += 1
        self.is_single = "label" in row
        if row["problem"]:
            self.problems[row["problem"]] += 1
            self.first.setdefault(row["problem"], row["index"])
            return
        for part in ("prompt", *sides_of(row)):
            self.truncated[part] += row[f"{part}_truncated"]
        if "label" in row:
            self.labels[row["label"]] += 1
        self.shifted += row["shifted"]
        self.left_out += bool(row["left_out"])
        self.guarded += row["guarded"]
        self.left_out_example = self.left_out_example or row["left_out"]

    def add_all(self, rows: pa.Table) -> None:
        """Count tokenised rows by their columns, of which no ids are needed."""
        usable = pc.equal(rows["problem"], "")
        for row in rows.filter(pc.invert(usable)).to_pylist():
            self.add(row)
        good = rows.filter(usable)
        self.rows += len(good)
        self.is_single = "label" in rows.column_names

        def total(name: str) -> int:
            return int(pc.sum(good[name]).as_py() or 0)

        for part in ("prompt", *sides_of(rows.column_names)):
            self.truncated[part] += total(f"{part}_truncated")
        if self.is_single:
            desirable = total("label")
            self.labels += Counter({True: desirable, False: len(good) - desirable})
        self.shifted += total("shifted")
        self.guarded += total("guarded")
        left_out = good["left_out"].filter(pc.not_equal(good["left_out"], ""))
        self.left_out += len(left_out)
        if len(left_out) and not self.left_out_example:
            self.left_out_example = left_out[0].as_py()

    def show_shift(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a row for the example of those whose responses start early, if it is the first."""
        if row["shifted"] and not self.shifted_example:
            before = tokenizer.decode(row["prompt_ids"][-_EXAMPLE_TOKENS:])
            after = tokenizer.decode(row[f"{sides_of(row)[0]}_ids"][:_EXAMPLE_TOKENS])
            self.shifted_example = f"{before!r} | {after!r}"

    def reset(self) -> None:
        """Count from zero again."""
        vars(self).update(vars(PreparationReport(self.split)))

    @property
    def usable(self) -> int:
        """Rows that can be trained on."""
        return self.rows - self.problems.total()

    @property
    def counts(self) -> str:
        """How many there are: ``8 pairs`` or ``8 labelled responses (5 desirable, 3 ...)``."""
        if not self.is_single:
            return f"{self.usable} pairs"
        good, bad = self.labels[True], self.labels[False]
        return f"{self.usable} labelled responses ({good} desirable, {bad} undesirable)"

    def notes(self) -> Iterator[str]:
        """What else is to be told of usable rows."""
        if self.guarded:
            yield (
                f"{self.guarded} special tokens in the text of messages are read as text: set "
                "data.special_tokens=control if they are to be control tokens"
            )
        if self.left_out:
            yield (
                f"the chat template leaves out text of {self.left_out} rows, for example "
                f"{self.left_out_example!r}: the model does not see it unless data.chat_template "
                "renders it"
            )
        if self.shifted:
            yield (
                f"the prompt's tokens do not begin those of prompt and response in {self.shifted} "
                "rows, so their responses start at the end of the shared tokens, for example "
                f"{self.shifted_example}"
            )

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
        parts = [f"split {self.split!r}: {self.counts}"]
        cut = [f"{count} {side}" for side, count in self.truncated.items() if count]
        if cut:
            parts.append("truncated: " + ", ".join(cut))
        if self.problems:
            parts.append(f"dropped: {self.describe_problems()}")
        parts += self.notes()
        tell = rank_zero_warn if len(parts) > 1 else rank_zero_info
        tell("; ".join(parts))
