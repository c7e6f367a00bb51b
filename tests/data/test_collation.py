"""Batches."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tidpo.data.collation import GroupCollator, PairCollator
from lit_tidpo.errors import InputError
from lit_tidpo.structures import ResponseBatch


def pair(index, prompt, chosen, rejected, **more):
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "chosen_weights": None,
        "rejected_weights": None,
        "index": index,
        **more,
    }


PAIRS = [pair(4, [5, 6], [7, 1], [8, 9, 1]), pair(2, [5], [6, 1], [1], counted=False)]


def test_rows_are_padded_on_the_right_role_by_role():
    batch = PairCollator(pad_id=0)(PAIRS)
    rows = [[5, 6, 7, 1, 0], [5, 6, 1, 0, 0], [5, 6, 8, 9, 1], [5, 1, 0, 0, 0]]
    assert batch.input_ids.tolist() == [rows[0], [5, 6, 1, 0, 0], rows[2], rows[3]]
    assert batch.prompt_lengths.tolist() == [2, 1, 2, 1]
    assert batch.lengths.tolist() == [4, 3, 5, 2]
    assert batch.roles == ("chosen", "rejected")
    assert batch.index.tolist() == [4, 2]
    assert batch.counted.tolist() == [True, False]
    assert batch.supplied_weights is None
    assert batch.size == 2


def test_masks_come_from_lengths_when_pad_is_eos():
    batch = PairCollator(pad_id=1)(PAIRS)
    assert batch.response_mask.sum(1).tolist() == [2, 2, 3, 1]
    assert torch.equal(batch.response_mask, PairCollator(pad_id=0)(PAIRS).response_mask)


def test_padding_does_not_move_log_probs():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).eval()

    def log_probs(collate):
        batch = collate(PAIRS)
        with torch.no_grad():
            logits = model(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        values = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        return values[batch.response_mask[:, 1:]]

    plain = log_probs(PairCollator(pad_id=0))
    assert plain.shape == (8,)
    for other in (PairCollator(pad_id=13), PairCollator(pad_id=1, multiple=16)):
        torch.testing.assert_close(log_probs(other), plain, rtol=0, atol=1e-6)


def test_padding_to_a_multiple():
    assert PairCollator(multiple=4)(PAIRS).input_ids.shape == (4, 8)
    assert PairCollator(multiple=5)(PAIRS).input_ids.shape == (4, 5)


def test_weights_stand_at_their_tokens():
    pairs = [
        pair(0, [5, 6], [7, 1], [8, 9, 1], chosen_weights=[1, 2], rejected_weights=[3, 4, 5]),
        pair(1, [5], [6, 1], [1], chosen_weights=[6, 7], rejected_weights=[8]),
    ]
    weights = PairCollator()(pairs).supplied_weights
    assert weights.tolist() == [
        [0, 0, 1, 2, 0],
        [0, 6, 7, 0, 0],
        [0, 0, 3, 4, 5],
        [0, 8, 0, 0, 0],
    ]


def test_weights_in_some_pairs_only_are_refused():
    pairs = [PAIRS[0], pair(1, [5], [6], [7], chosen_weights=[1], rejected_weights=[1])]
    with pytest.raises(
        InputError, match=r"prompts \[4, 1\] have weights, others have none.*chosen_weights"
    ):
        PairCollator()(pairs)


def group(index, prompt, *responses):
    return {"prompt_ids": prompt, "responses": list(responses), "index": index}


def test_groups_of_any_size_stand_role_by_role():
    batch = GroupCollator(pad_id=9)(
        [
            group(7, [1, 2], {"ids": [3]}),
            group(8, [4], {"ids": [5, 6]}, {"ids": [7]}, {"ids": [8, 8]}),
            group(9, [1], {"ids": [2]}, {"ids": [3]}),
        ]
    )
    assert batch.roles == ("response_1", "response_2", "response_3")
    assert batch.holders == ((0, 1, 2), (1, 2), (1,))
    assert batch.input_ids.tolist() == [
        [1, 2, 3],
        [4, 5, 6],
        [1, 2, 9],
        [4, 7, 9],
        [1, 3, 9],
        [4, 8, 8],
    ]
    assert batch.prompt_lengths.tolist() == [2, 1, 1, 1, 1, 1]
    assert batch.lengths.tolist() == [3, 3, 2, 2, 2, 3]
    assert batch.index.tolist() == [7, 8, 9]
    assert batch.rows("response_2") == slice(3, 5)
    assert batch.of_rows(torch.tensor([10, 20, 30])).tolist() == [10, 20, 30, 20, 30, 20]
    table, present = batch.by_prompt(torch.arange(1.0, 7.0))
    assert table.tolist() == [[1, 0, 0], [2, 4, 6], [3, 5, 0]]
    assert present.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    second = batch.role("response_2")
    assert second.index.tolist() == [8, 9]
    assert second.holders is None
    assert second.input_ids.tolist() == [[4, 7], [1, 3]]


def test_what_responses_bring_along_stands_at_their_rows():
    batch = GroupCollator()(
        [
            group(0, [1], {"ids": [3, 2], "reward": 0.5, "behaviour_logps": [-1, -2]}),
            group(
                1,
                [1, 4],
                {"ids": [2], "reward": 2.0, "behaviour_logps": [-3]},
                {"ids": [5, 2], "reward": -1.0, "behaviour_logps": [-4, -5]},
            ),
        ]
    )
    assert batch.rewards.tolist() == [0.5, 2.0, -1.0]
    assert batch.behaviour_logps.tolist() == [[0, -1, -2, 0], [0, 0, -3, 0], [0, 0, -4, -5]]
    assert batch.role("response_2").rewards.tolist() == [-1.0]


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_or_too_many_responses_are_refused(count):
    groups = [group(5, [1], *[{"ids": [2]}] * count)]
    with pytest.raises(InputError, match=rf"prompt 5 .* has {count} responses; expected 1 to 2"):
        GroupCollator(most=2)(groups)


@pytest.mark.parametrize("name", ["reward", "behaviour_logps", "weights"])
def test_what_only_some_responses_have_is_refused(name):
    groups = [group(5, [1], {"ids": [2], name: [1]}, {"ids": [3]})]
    with pytest.raises(InputError, match=rf"prompts \[5\] have {name}, others have none"):
        GroupCollator()(groups)


@pytest.mark.parametrize(
    ("roles", "holders"),
    [
        (("a", "b"), None),  # six rows for two prompts
        (("a", "b", "c"), ((0, 1), (0, 1), (1,))),  # five
        (("a", "b", "c", "d"), ((0,), (0, 1), (0, 1), (1,))),  # not every prompt has the first
    ],
)
def test_rows_that_do_not_fit_their_roles_are_refused(roles, holders):
    rows = torch.ones(6, dtype=torch.long)
    with pytest.raises(InputError, match="has 6 rows: expected one for each prompt and role"):
        ResponseBatch(
            rows[:, None], rows, rows, roles, torch.arange(2), rows[:2].bool(), holders=holders
        )


def test_responses_of_another_shape_are_refused():
    group = {"index": 3, "prompt_ids": [1], "responses": [[5, 2], [6, 2]]}
    with pytest.raises(InputError, match=r"prompt 3 .* expected responses as \{'ids': "):
        GroupCollator()([group])


def test_scores_and_weights_of_pairs_come_along():
    numbers = {"score_chosen": 4.0, "score_rejected": 1.5, "pair_weight": 0.5}
    batch = PairCollator()([{**PAIRS[0], **numbers}, {**PAIRS[1], **numbers, "score_chosen": 3.0}])
    assert batch.rewards.tolist() == [4.0, 3.0, 1.5, 1.5]
    assert batch.pair_weights.tolist() == [0.5, 0.5]
    assert batch.labels.tolist() == [True, True, False, False]
    some = PairCollator()([{**PAIRS[0], **numbers}, {**PAIRS[1], **numbers, "score_chosen": None}])
    assert some.rewards is None


def test_a_weight_of_only_some_pairs_is_refused():
    with pytest.raises(InputError, match=r"some of the rows \[4, 2\] have a pair_weight"):
        PairCollator()([{**PAIRS[0], "pair_weight": 1.0}, PAIRS[1]])


def test_labels_and_weights_of_groups_come_along():
    groups = [
        {"prompt_ids": [5], "responses": [{"ids": [6], "label": n == 0}], "index": n}
        for n in range(2)
    ]
    batch = GroupCollator()([{**group, "pair_weight": 2.0} for group in groups])
    assert batch.labels.tolist() == [True, False]
    assert batch.pair_weights.tolist() == [2.0, 2.0]
    assert GroupCollator()(groups).pair_weights is None
