"""Where a model looks that is to judge which response is better."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import normalize_scores
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.models.tokenizer import load_tokenizer
from lit_tidpo.structures import ResponseBatch, Results

_FIELDS = ("prompt", "first", "second")
_TEMPLATE = """\
Two answers to a prompt are to be compared: which one is more helpful, correct and to the point?

Prompt:
{prompt}

Answer A:
{first}

Answer B:
{second}

The better answer, A or B, is answer"""


class JudgedAttentionImportance(ImportanceEstimator):
    """Attention of the policy as it judges a pair (AttentionPO: arXiv 2605.21883).

    Both responses stand in a text that asks which is better. What its last token attends to in one
    layer, the mean over the heads, is shared out in each response to sum 1; the mean over both
    orders of the responses is the score. (So in the authors' code, which compares texts of a chat
    template at several layers. The template here is ours.) Special tokens are left out and score 0.
    Among several responses each is compared with each other one of its prompt; one alone has ones.
    Models must run eager attention (``policy.attn_implementation: eager``), and take rows as long
    as the prompt, both responses and the template.

    Args:
        tokenizer: That of the policy: path, name on the Hub, or ``builtin:NAME``.
        layer: The layer; negative numbers count from the last one; None takes the middle one.
        template: Text with ``{prompt}``, ``{first}`` and ``{second}`` in this order, once each.

    Raises:
        InputError: If the template does not have them.
    """

    looks_at = "group"
    needs = frozenset({"policy.attend"})

    def __init__(self, tokenizer: str, layer: int | None = None, template: str = _TEMPLATE) -> None:
        rest, parts = template, []
        for name in _FIELDS:
            part, found, rest = rest.partition(f"{{{name}}}")
            parts.append(part)
            if not found or f"{{{name}}}" in rest:
                raise InputError(
                    f"template={template!r}: expected {{prompt}}, {{first}} and {{second}} in this "
                    "order, once each"
                )
        self.tokenizer = tokenizer
        self.layer = layer
        self.template = template
        self._parts = [*parts, rest]

    @cached_property
    def _loaded(self) -> Any:
        return load_tokenizer(self.tokenizer)

    @cached_property
    def _text_ids(self) -> list[list[int]]:
        """Ids of what stands before, between and after the three texts."""
        found = self._loaded(self._parts, add_special_tokens=False)["input_ids"]
        begin = self._loaded.bos_token_id
        return [[*([] if begin is None else [begin]), *found[0]], *found[1:]]

    def scores(self, results: Results) -> Tensor:
        """Shares of attention, zero off the response, ``[N, T]``."""
        pairs = results.batch.pairs_of_rows()
        if not pairs:
            return results.mask.float()
        orders = [*pairs, *(pair[::-1] for pair in pairs)]
        special = torch.tensor(sorted(self._loaded.all_special_ids))
        ids = results.batch.input_ids.cpu()
        mask = results.mask.cpu()
        text = ~torch.isin(ids, special)
        judged, places = self._judged(ids, results.batch, mask & text, text, orders)
        layers = results["policy.attend"](judged)
        attention = layers[self._place(len(layers))].float().mean(1).cpu()
        sums, counts = torch.zeros(mask.shape), torch.zeros(len(mask), 1)
        for row, (order, starts) in enumerate(zip(orders, places, strict=True)):
            for response, start in zip(order, starts, strict=True):
                own = (mask & text)[response]
                looked = attention[row, start : start + int(own.sum())]
                sums[response, own] += normalize_scores(looked, torch.ones_like(looked).bool())
                counts[response] += 1
        shares = (sums / counts.clamp(min=1)).where(counts > 0, mask.float())
        return shares.to(results.mask.device)

    def _place(self, layers: int) -> int:
        place = (layers - 1) // 2 if self.layer is None else self.layer
        if not -layers <= place < layers:
            raise InputError(
                f"layer={place}: the model has {layers}, expected -{layers}..{layers - 1}"
            )
        return place

    def _judged(
        self,
        ids: Tensor,
        batch: ResponseBatch,
        answers: Tensor,
        text: Tensor,
        orders: list[tuple[int, int]],
    ) -> tuple[ResponseBatch, list[tuple[int, int]]]:
        """Rows to judge on the batch's device, and where both answers start in each."""
        rows, places = [], []
        for first, second in orders:
            prompt = ids[first, : int(batch.prompt_lengths[first])]
            fields = [
                prompt[text[first, : len(prompt)]].tolist(),
                *(ids[row][answers[row]].tolist() for row in (first, second)),
            ]
            parts = [*chain(*_between(self._text_ids, fields))]
            starts = [sum(map(len, parts[:place])) for place in (3, 5)]
            rows.append([*chain(*parts)])
            places.append((starts[0], starts[1]))
        lengths = torch.tensor([*map(len, rows)])
        width = int(lengths.max())
        device = batch.input_ids.device
        return (
            ResponseBatch(
                torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device),
                (lengths - 1).to(device),
                lengths.to(device),
                ("judged",),
                torch.arange(len(rows)),
                torch.ones(len(rows), dtype=torch.bool),
            ),
            places,
        )


def _between(texts: list[list[int]], fields: list[list[int]]) -> Iterator[tuple[list[int], ...]]:
    """The texts, with the fields between them."""
    yield from zip(texts, fields, strict=False)
    yield (texts[-1],)
