"""What a page shows of a prompt and its responses, as plain data."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lit_tidpo.edits import changed
from lit_tidpo.structures import Results

_SHOWN = {
    "reference.kl": "KL(reference || policy)",
    "policy.entropy": "entropy",
    "policy.logps": "log-prob",
}
"""What is shown besides weights and log-ratios, where it was computed; all in nats."""

_CONTEXT = 8
"""Tokens before one that its text may hang on."""

_LABELS = ("undesirable", "desirable")

_INCOMPLETE = "\ufffd"
"""What tokenizers decode a part of a letter to."""


@dataclass(frozen=True)
class ExplainedResponse:
    """A response, token by token.

    Attributes:
        role: ``chosen``, ``rejected``, ``anchor``, ...
        token_ids: Its tokens.
        tokens: Their texts, see :func:`token_texts`; the ids where there is no tokenizer.
        edited: Whether an edit of the chosen into the rejected response takes the token away or
            puts it in; of the first two responses alone.
        weights: Importance weights by estimator.
        quantities: Log-ratio, KL, entropy and log-prob in nats, where they were computed.
    """

    role: str
    token_ids: list[int]
    tokens: list[str]
    edited: list[bool]
    weights: dict[str, list[float]]
    quantities: dict[str, list[float]]

    def ranks(self, estimator: str) -> list[int]:
        """Place of each token among those of the response, 1 for the largest absolute weight.

        Tokens of equal weight share the better place.
        """
        sizes = [abs(weight) for weight in self.weights[estimator]]
        ordered = sorted(sizes, reverse=True)
        return [ordered.index(size) + 1 for size in sizes]


@dataclass(frozen=True)
class ExplainedPair:
    """A prompt with its responses.

    Attributes:
        index: Position in the data set.
        prompt: Its text; of a prompt without a tokenizer, its ids.
        responses: The responses in the order of their roles.
    """

    index: int
    prompt: str
    responses: list[ExplainedResponse]

    @property
    def disagreement(self) -> float | None:
        """How differently the estimators share out a response's weight, 0 to 1.

        ``sum_t |p_t - q_t| / 2`` (total variation) of the shares ``p`` and ``q`` that two
        estimators give the tokens by absolute weight: the part of the weight that the one puts
        elsewhere. The mean over estimators, two by two, and over responses; None of fewer than two.
        """
        distances = [
            sum(abs(one - other) for one, other in zip(first, second, strict=True)) / 2
            for response in self.responses
            for first, second in combinations(map(_shares, response.weights.values()), 2)
        ]
        return sum(distances) / len(distances) if distances else None


def _shares(weights: list[float]) -> list[float]:
    """Absolute weights that sum to 1; equal ones where all are 0."""
    total = sum(map(abs, weights))
    return [abs(each) / total if total else 1 / len(weights) for each in weights]


def explained_pairs(
    parts: Iterable[tuple[Results, Mapping[str, Tensor]]], tokenizer: Any
) -> list[ExplainedPair]:
    """Everything that was computed of some prompts.

    Args:
        parts: Results of batches of the same prompts, such as pairs and their anchors, and for each
            the weights by estimator, ``[N, T]``.
        tokenizer: Turns ids into text; None shows ids.

    Returns:
        One entry for each prompt, in the order of the first batch.
    """
    prompts: dict[int, str] = {}
    found: dict[int, list[ExplainedResponse]] = defaultdict(list)
    for results, weights in parts:
        batch = results.batch
        labels = batch.desirable if len(batch.roles) == 1 else None
        shown = {label: results[need] for need, label in _SHOWN.items() if need in results}
        if "reference.logps" in results:
            shown = {"log-ratio": results.log_ratios, **shown}
        owners = batch.of_rows(torch.arange(batch.size, device=batch.index.device)).tolist()
        for role in batch.roles:
            for row in range(len(batch.input_ids))[batch.rows(role)]:
                if not bool(batch.counted[owners[row]]):
                    continue
                index, mask = int(batch.index[owners[row]]), results.mask[row]
                prompt = batch.input_ids[row, : int(batch.prompt_lengths[row])].tolist()
                prompts.setdefault(index, "".join(token_texts(prompt, [], tokenizer)))
                token_ids = batch.input_ids[row][mask].tolist()
                weighed = {name: values[row][mask].tolist() for name, values in weights.items()}
                others = {name: values[row][mask].tolist() for name, values in shown.items()}
                texts = token_texts(token_ids, prompt, tokenizer)
                untouched = [False] * len(token_ids)
                name = role if labels is None else _LABELS[bool(labels[row])]
                found[index].append(
                    ExplainedResponse(name, token_ids, texts, untouched, weighed, others)
                )
    return [ExplainedPair(index, prompts[index], _marked(own)) for index, own in found.items()]


def token_texts(token_ids: list[int], before: list[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text before it; joined they are the text.

    On its own a token may lose the space that it begins with, or be a part of a letter.

    Args:
        token_ids: The tokens.
        before: Those before them.
        tokenizer: Decodes; None gives ids.

    Returns:
        A text for each token, empty where the next one completes the letter.
    """
    if tokenizer is None:
        return [f" {token}" for token in token_ids]
    ids, texts = [*before[-_CONTEXT:], *token_ids], []
    for place in range(len(ids) - len(token_ids), len(ids)):
        first = max(0, place - _CONTEXT)
        known, more = (
            str(tokenizer.decode(ids[first:end])).rstrip(_INCOMPLETE) for end in (place, place + 1)
        )
        joins = more.startswith(known)
        texts.append(more[len(known) :] if joins else str(tokenizer.decode([ids[place]])))
    return texts


def _marked(responses: list[ExplainedResponse]) -> list[ExplainedResponse]:
    """The responses with the edit of the first one into the second."""
    if len(responses) < 2:
        return responses
    first, second, *others = responses
    marks = changed(first.token_ids, second.token_ids)
    pair = zip((first, second), marks, strict=True)
    return [*(dataclasses.replace(each, edited=own) for each, own in pair), *others]
