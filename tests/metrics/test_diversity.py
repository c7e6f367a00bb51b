"""Diversity against hand calculation, nltk's BLEU and a naive loop."""

import itertools
import math
import random

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.metrics.diversity import DistinctNGrams, SelfBLEU, TokenEntropy

# Two prompts with three responses each.
RESPONSES = [
    [3, 3, 0, 2, 3, 3, 2, 3, 2, 1, 1],
    [1, 0, 2, 1, 2, 0, 0],
    [2, 3, 0, 2, 3, 2, 1, 3, 3, 2, 0],
    [0, 0, 3, 0, 3, 2, 1, 2, 0, 1, 1],
    [1, 3, 0, 0, 2, 3],
    [2, 2, 0, 2, 1],
]
PROMPTS = [0, 0, 0, 1, 1, 1]


def padded(responses, pad=9):
    width = max(map(len, responses))
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in responses])
    return ids, ids != pad


def measured(metric, responses, prompts):
    metric.update(*padded(responses), torch.tensor(prompts))
    return float(metric.compute())


@pytest.mark.parametrize(("n", "expected"), [(1, 0.765595694), (2, 0.673389909), (4, 0.190726518)])
def test_self_bleu_is_that_of_nltk(n, expected):
    """nltk 3.10's sentence_bleu, equal weights, no smoothing."""
    assert measured(SelfBLEU(n), RESPONSES, PROMPTS) == pytest.approx(expected, abs=1e-6)


def test_self_bleu_by_hand():
    """(1 2 3) against (1 2 4 5): 2 of 3 words, 1 of 2 pairs, brevity exp(1 - 4/3).

    (1 2 4 5) against (1 2 3): 2 of 4 words, 1 of 3 pairs, no penalty.
    """
    first = math.exp(1 - 4 / 3) * math.sqrt(2 / 3 * 1 / 2)
    second = math.sqrt(2 / 4 * 1 / 3)
    value = measured(SelfBLEU(2), [[1, 2, 3], [1, 2, 4, 5]], [7, 7])
    assert value == pytest.approx((first + second) / 2)


def test_self_bleu_leaves_out_what_is_alone_or_empty():
    alone = measured(SelfBLEU(1), [[1, 2], [1, 2], [5, 6], []], [0, 0, 1, 0])
    assert alone == 1.0
    assert math.isnan(measured(SelfBLEU(), [[1, 2], [3, 4]], [0, 1]))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_distinct_n_grams_by_a_naive_loop(n):
    seen, count = [], 0
    for ids in RESPONSES:
        for start in range(len(ids)):
            gram = ids[start : start + n]
            if len(gram) == n:
                count += 1
                if gram not in seen:
                    seen.append(gram)
    assert measured(DistinctNGrams(n), RESPONSES, PROMPTS) == pytest.approx(len(seen) / count)


def test_distinct_n_grams_do_not_cross_responses():
    """(1 2), (3): one pair of tokens, and not (2 3)."""
    metric = DistinctNGrams(2)
    assert measured(metric, [[1, 2], [3], [1, 2]], [0, 0, 0]) == 0.5
    assert math.isnan(measured(DistinctNGrams(2), [[1], [2]], [0, 0]))


def test_entropy_by_hand():
    """Shares 1/2, 1/4, 1/4: 1.5 bits."""
    value = measured(TokenEntropy(), [[5, 5], [6], [7]], [0, 0, 0])
    assert value == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize("make", [SelfBLEU, lambda: DistinctNGrams(2), TokenEntropy])
def test_batches_and_ranks_add_up(make):
    """Two updates, and two states joined as ranks are, are one update with everything."""
    whole = measured(make(), RESPONSES, PROMPTS)
    twice = make()
    twice.update(*padded(RESPONSES[:2]), torch.tensor(PROMPTS[:2]))
    measured_twice = measured(twice, RESPONSES[2:], PROMPTS[2:])
    assert measured_twice == whole
    one, other = make(), make()
    one.update(*padded(RESPONSES[:2]), torch.tensor(PROMPTS[:2]))
    other.update(*padded(RESPONSES[2:]), torch.tensor(PROMPTS[2:]))
    one.merge_state(other)
    assert float(one.compute()) == pytest.approx(whole)
    twice.reset()
    assert measured(twice, RESPONSES[:3], PROMPTS[:3]) != whole


def test_the_order_of_responses_does_not_matter():
    order = random.Random(0).sample(range(6), 6)
    shuffled = [RESPONSES[i] for i in order], [PROMPTS[i] for i in order]
    for make in (SelfBLEU, lambda: DistinctNGrams(4), TokenEntropy):
        assert measured(make(), *shuffled) == pytest.approx(measured(make(), RESPONSES, PROMPTS))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="n=0"):
        DistinctNGrams(0)
    with pytest.raises(InputError, match="n_gram=0"):
        SelfBLEU(0)
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match="mask: expected bool"):
        TokenEntropy().update(ids, ids, torch.zeros(2))


def test_self_bleu_does_not_depend_on_the_order_of_responses():
    """Of two references that are equally close in length, the shorter counts, as in NLTK."""
    responses = [[1, 2, 3], [1, 2, 3, 4], [1, 2], [2, 3, 4, 5, 6]]
    found = set()
    for order in itertools.permutations(responses):
        metric = SelfBLEU(n_gram=1)
        for ids in order:
            metric.update(torch.tensor([ids]), torch.ones(1, len(ids)).bool(), torch.tensor([0]))
        found.add(round(float(metric.compute()), 6))
    # By hand: 3 of 3; 4 of 4, beside references of 3 and 5 tokens; 2 of 2, too short; 3 of 5.
    (value,) = found
    assert value == pytest.approx((1 + 1 + math.exp(1 - 3 / 2) + 3 / 5) / 4, abs=1e-5)
