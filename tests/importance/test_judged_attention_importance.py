"""Where the policy looks when it judges a pair, against plain forwards of the text."""

from __future__ import annotations

import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.importance.judged_attention_importance import JudgedAttentionImportance
from lit_tidpo.testing import tiny_batch, tiny_groups, tiny_policy

from .test_contract import TEMPLATE, small_tokenizer

BEGIN, COMPARE, A, B, BETTER, END = 1, 4, 5, 6, 7, 2


@pytest.fixture
def tokenizer(tmp_path):
    return small_tokenizer(tmp_path)


@pytest.mark.parametrize("layer", [None, 1, -1])
def test_it_is_the_attention_of_the_last_token_in_both_orders(tokenizer, layer):
    """Ids put together by hand; the end of each response is special and left out."""
    policy, batch = tiny_policy(attention="eager"), tiny_batch()
    estimator = JudgedAttentionImportance(tokenizer, layer, TEMPLATE)
    ours = estimator.scores(run(policy, batch, estimator.needs))
    ends = [*zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)]
    for prompt in range(batch.size):
        rows = (prompt, prompt + batch.size)
        question = batch.input_ids[prompt, : ends[prompt][0]].tolist()
        answers = {
            row: batch.input_ids[row, ends[row][0] : ends[row][1] - 1].tolist() for row in rows
        }
        shares = {row: [] for row in rows}
        for first, second in (rows, rows[::-1]):
            head = [BEGIN, COMPARE, *question, A]
            ids = [*head, *answers[first], B, *answers[second], BETTER]
            with torch.no_grad():
                layers = policy(torch.tensor([ids]), output_attentions=True).attentions
            looked = layers[0 if layer is None else layer][0].double().mean(0)[-1]
            start = len(head)
            for row in (first, second):
                own = looked[start : start + len(answers[row])]
                shares[row].append((own / own.sum()).tolist())
                start += len(answers[row]) + 1
        for row in rows:
            expected = [(one + other) / 2 for one, other in zip(*shares[row], strict=True)]
            found = ours[row][batch.response_mask[row]].tolist()
            assert found == pytest.approx([*expected, 0.0], abs=1e-5)


def test_of_groups_each_sums_to_one_and_one_alone_has_ones(tokenizer):
    groups = tiny_groups()
    estimator = JudgedAttentionImportance(tokenizer, template=TEMPLATE)
    scores = estimator.scores(run(tiny_policy(attention="eager"), groups, estimator.needs))
    owners = groups.of_rows(torch.arange(groups.size)).tolist()
    for row, owner in enumerate(owners):
        own = scores[row][groups.response_mask[row]]
        alone = owners.count(owner) == 1
        assert own.sum().item() == pytest.approx(len(own) if alone else 1.0, rel=1e-5)


@pytest.mark.parametrize(
    "template",
    ["{prompt} {second} {first}", "{prompt} {first}", "{prompt} {first} {first} {second}"],
)
def test_templates_without_the_three_are_refused(template):
    with pytest.raises(InputError, match=r"expected {prompt}, {first} and {second} in this order"):
        JudgedAttentionImportance("builtin:policy", template=template)


def test_a_layer_that_does_not_exist_is_refused(tokenizer):
    estimator = JudgedAttentionImportance(tokenizer, 2, TEMPLATE)
    results = run(tiny_policy(attention="eager"), tiny_batch(), estimator.needs)
    with pytest.raises(InputError, match=r"layer=2: the model has 2, expected -2\.\.1"):
        estimator.scores(results)
