"""What became of the rows of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

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

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a tokenised row, of which no ids are looked at."""
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

    def show_shift(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a row for the example of those whose responses start early, if it is the first."""
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

    @property
    def truncated(self) -> dict[str, int]:
        """Usable pairs of which a part was cut, by the part."""
        return {
            "prompt": self.prompts_truncated,
            "chosen": self.chosen_truncated,
            "rejected": self.rejected_truncated,
        }

    def notes(self) -> Iterator[str]:
        """What else is to be told of usable pairs."""
        if self.guarded:
            yield (
                f"{self.guarded} special tokens in the text of messages are read as text: set "
                "data.special_tokens=control if they are to be control tokens"
            )
        if self.left_out:
            yield (
                f"the chat template leaves out text of {self.left_out} pairs, for example "
                f"{self.left_out_example!r}: the model does not see it unless data.chat_template "
                "renders it"
            )
        if self.shifted:
            yield (
                f"the prompt's tokens do not begin those of prompt and response in {self.shifted} "
                "pairs, so their responses start at the end of the shared tokens, for example "
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
        parts = [f"split {self.split!r}: {self.usable} pairs"]
        cut = [f"{count} {side}" for side, count in self.truncated.items() if count]
        if cut:
            parts.append("truncated: " + ", ".join(cut))
        if self.problems:
            parts.append(f"dropped: {self.describe_problems()}")
        parts += self.notes()
        tell = rank_zero_warn if len(parts) > 1 else rank_zero_info
        tell("; ".join(parts))
