"""Pairs of the shipped defects as token ids, with the tokens of the defect marked."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.locations import locate
from lit_tidpo.models.tokenizer import load_tokenizer
from lit_tidpo.structures import ResponseBatch

MAX_LENGTH = 512
TOKENIZER = "builtin:policy"


@dataclass(frozen=True)
class DefectRow:
    """One pair, seen from its rejected response.

    Attributes:
        fields: The row of the data set.
        prompt: Token ids of the prompt.
        chosen: Token ids of the chosen response, with its end.
        rejected: Token ids of the rejected response, with its end.
        places: Start and end of each rejected token in characters of the response; the end of the
            sequence has none and stands at its end.
        marked: True at rejected tokens that overlap the defect, bool.
    """

    fields: dict[str, Any]
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    places: list[tuple[int, int]]
    marked: Tensor

    @property
    def module(self) -> str:
        """Top-level module that the function is from."""
        return str(self.fields["module"]).partition(".")[0]


def held_out_rows(split: str, limit: int | None, seed: int = 0) -> list[DefectRow]:
    """Pairs of a split, in random order, those that had to be cut left out.

    Args:
        split: ``train``, ``validation`` or ``test``; no module is in two of them.
        limit: Most pairs; None takes all.
        seed: Seed of the order.
    """
    file = Path(locate("builtin:stdlib_defects")) / f"{split}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    random.Random(seed).shuffle(lines)
    tokenizer = load_tokenizer(TOKENIZER)
    tokenise = PairTokenizer(tokenizer, TokenizationOptions(MAX_LENGTH))
    rows: list[DefectRow] = []
    for line in lines:
        row = tokenised_row(json.loads(line), tokenise, tokenizer)
        if row is not None:
            rows.append(row)
        if len(rows) == limit:
            break
    return rows


def tokenised_row(
    fields: dict[str, Any], tokenise: PairTokenizer, tokenizer: PreTrainedTokenizerBase
) -> DefectRow | None:
    """One pair; None if it had to be cut."""
    ids = tokenise(fields, 0)
    if ids["problem"] or any(ids[f"{part}_truncated"] for part in ("prompt", "chosen", "rejected")):
        return None
    prompt, rejected = fields["prompt"], fields["rejected"]
    encoded = tokenizer(prompt + rejected, add_special_tokens=False, return_offsets_mapping=True)
    tokens = len(ids["rejected_ids"]) - 1  # the end of the sequence is no text
    assert encoded["input_ids"][-tokens:] == ids["rejected_ids"][:-1]
    shift = len(prompt)
    offsets = encoded["offset_mapping"][-tokens:]
    places = [(max(start - shift, 0), end - shift) for start, end in offsets]
    places.append((len(rejected), len(rejected)))
    first, last = fields["rejected_span"]
    marked = torch.tensor([start < last and end > first for start, end in places])
    return DefectRow(
        fields, ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"], places, marked
    )


def as_batch(rows: Sequence[DefectRow], roles: tuple[str, ...] = ("rejected",)) -> ResponseBatch:
    """Rows as a padded batch.

    Args:
        rows: Pairs.
        roles: Which of their responses.
    """
    responses = [(row.prompt, getattr(row, role)) for role in roles for row in rows]
    width = max(len(prompt) + len(response) for prompt, response in responses)
    padded = [
        [*prompt, *response, *[0] * (width - len(prompt) - len(response))]
        for prompt, response in responses
    ]
    return ResponseBatch(
        input_ids=torch.tensor(padded),
        prompt_lengths=torch.tensor([len(prompt) for prompt, _ in responses]),
        lengths=torch.tensor([len(prompt) + len(response) for prompt, response in responses]),
        roles=roles,
        index=torch.arange(len(rows)),
        counted=torch.ones(len(rows), dtype=torch.bool),
    )


def paraphrased(rows: Sequence[DefectRow]) -> list[tuple[DefectRow, DefectRow]]:
    """Pairs of a row and the same with other white space: indents halved, blank lines put in.

    The defect's place is not kept in the second one. Rows that would have to be cut are left out.
    """
    tokenizer = load_tokenizer(TOKENIZER)
    tokenise = PairTokenizer(tokenizer, TokenizationOptions(MAX_LENGTH))
    both = []
    for row in rows:
        fields = dict(row.fields)
        for role in ("chosen", "rejected"):
            fields[role] = re.sub(
                r"\n( +)", lambda match: "\n\n" + " " * (len(match[1]) // 2), fields[role]
            )
        other = tokenised_row(fields, tokenise, tokenizer)
        if other is not None:
            both.append((row, other))
    return both
