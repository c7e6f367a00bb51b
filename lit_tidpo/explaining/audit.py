"""Which tokens, and which classes of words, carry the weight over a data set."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.explaining.pairs import ExplainedPair, ExplainedResponse

ROLES = ("chosen", "rejected")

Lexicon = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Interval:
    """A value with the 95 % percentile interval of its bootstrap; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ClassWeight:
    """How much weight one class of tokens has under one estimator.

    Attributes:
        estimator: Name of the estimator.
        name: Name of the class.
        tokens: Its tokens in the chosen and in the rejected responses.
        chosen: Its share of the weight of all chosen responses, divided by its share of their
            tokens: 1 is neither more nor less than other tokens.
        rejected: The same of the rejected ones.
        difference: The first less the second.
    """

    estimator: str
    name: str
    tokens: tuple[int, ...]
    chosen: Interval
    rejected: Interval
    difference: Interval


def check_lexicon(lexicon: object) -> Lexicon:
    """Refuse what is no lexicon.

    Raises:
        InputError: If it does not map names of classes to lists of words.
    """
    fits = isinstance(lexicon, dict) and all(
        isinstance(words, list) and words and all(isinstance(w, str) and w for w in words)
        for words in lexicon.values()
    )
    if not fits or not lexicon:
        raise InputError(
            "lexicon: expected an object of classes, each with a list of words, such as "
            '{"hedging": ["maybe", "perhaps"]}'
        )
    assert isinstance(lexicon, dict)
    return lexicon


def class_weights(
    pairs: Sequence[ExplainedPair], lexicon: Lexicon, resamples: int = 2000, seed: int = 0
) -> list[ClassWeight]:
    """The weight of each class of a lexicon.

    Pairs are drawn with replacement, since the tokens of a pair hang together.

    Args:
        pairs: Explained pairs with a chosen and a rejected response.
        lexicon: Words of each class, matched whole and without regard to case.
        resamples: Bootstrap samples.
        seed: Seed of them.

    Returns:
        One entry for each estimator and class.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(pairs), (resamples, len(pairs)), generator=generator)
    times = torch.zeros(drawn.shape, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    members = {name: _members(pairs, words) for name, words in lexicon.items()}
    found = []
    for estimator in pairs[0].responses[0].weights:
        for name, inside in members.items():
            sums = torch.stack(
                [
                    torch.stack(
                        [_sums(_of_role(pair, role), estimator, own[role]) for role in ROLES]
                    )
                    for pair, own in zip(pairs, inside, strict=True)
                ]
            )  # [pairs, roles, 4]
            value, samples = (
                _relative(sums.sum(0)),
                _relative(torch.einsum("sp,prk->srk", times, sums)),
            )
            tokens = sums[:, :, 1].sum(0).int().tolist()
            chosen, rejected = (_interval(value[n], samples[:, n]) for n in range(2))
            difference = _interval(value[0] - value[1], samples[:, 0] - samples[:, 1])
            found.append(ClassWeight(estimator, name, tuple(tokens), chosen, rejected, difference))
    return found


def heaviest_tokens(
    pairs: Sequence[ExplainedPair], least: int = 5, most: int = 20
) -> dict[str, list[tuple[str, int, float]]]:
    """Texts of tokens with the largest mean absolute weight, by estimator.

    Args:
        pairs: Explained pairs.
        least: Times that a text must come to be counted.
        most: Texts to list.

    Returns:
        Text in lower case without space around it, how often it comes, and its mean weight.
    """
    count: Counter[str] = Counter()
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for response in (each for pair in pairs for each in pair.responses if each.role in ROLES):
        texts = [text.strip().lower() for text in response.tokens]
        count.update(texts)
        for estimator, weights in response.weights.items():
            for text, weight in zip(texts, weights, strict=True):
                sums[estimator][text] += abs(weight)
    often = [text for text, times in count.items() if times >= least and text]
    return {
        estimator: sorted(
            ((text, count[text], total[text] / count[text]) for text in often),
            key=lambda each: -each[2],
        )[:most]
        for estimator, total in sums.items()
    }


def _of_role(pair: ExplainedPair, role: str) -> ExplainedResponse:
    return next(each for each in pair.responses if each.role == role)


def _members(pairs: Sequence[ExplainedPair], words: Sequence[str]) -> list[dict[str, Tensor]]:
    """For each pair and role whether each token is of the class."""
    alternatives = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
    return [
        {role: torch.tensor([*_inside(_of_role(pair, role).tokens, pattern)]) for role in ROLES}
        for pair in pairs
    ]


def _inside(tokens: Sequence[str], pattern: re.Pattern[str]) -> Iterator[bool]:
    """Whether each token has a part in a match; a part of a letter has that of the letter."""
    matches = [match.span() for match in pattern.finditer("".join(tokens))]
    start = 0
    for token in tokens:
        end = start + max(len(token), 1)
        yield any(start < stop and end > begin for begin, stop in matches)
        start += len(token)


def _sums(response: ExplainedResponse, estimator: str, inside: Tensor) -> Tensor:
    """Weight and tokens of the class, weight and tokens of all, ``[4]``."""
    weights = torch.tensor(response.weights[estimator], dtype=torch.float64).abs()
    counts = torch.ones_like(weights)
    return torch.stack([weights[inside].sum(), counts[inside].sum(), weights.sum(), counts.sum()])


def _relative(sums: Tensor) -> Tensor:
    """Share of the weight by share of the tokens, ``[..., 4]`` to ``[...]``; NaN of no tokens."""
    weight, count, all_weight, all_count = sums.unbind(-1)
    return (weight / all_weight) / (count / all_count)


def _interval(value: Tensor, samples: Tensor) -> Interval:
    # Samples without a token of the class say nothing of it.
    defined = samples[samples.isfinite()]
    if not bool(value.isfinite()) or not len(defined):
        return Interval(None, None, None)
    low, high = defined.quantile(torch.tensor([0.025, 0.975], dtype=defined.dtype)).tolist()
    return Interval(float(value), low, high)
