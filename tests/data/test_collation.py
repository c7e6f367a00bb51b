"""Batches."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tidpo.data.collation import PairCollator
from lit_tidpo.errors import InputError


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


def test_d7_rows_are_padded_on_the_right_role_by_role():
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


def test_d3_masks_come_from_lengths_when_pad_is_eos():
    batch = PairCollator(pad_id=1)(PAIRS)
    assert batch.response_mask.sum(1).tolist() == [2, 2, 3, 1]
    assert torch.equal(batch.response_mask, PairCollator(pad_id=0)(PAIRS).response_mask)


def test_d7_padding_does_not_move_log_probs():
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


def test_w9_weights_stand_at_their_tokens():
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


def test_w9_weights_in_some_pairs_only_are_refused():
    pairs = [PAIRS[0], pair(1, [5], [6], [7], chosen_weights=[1], rejected_weights=[1])]
    with pytest.raises(InputError, match=r"pairs \[4, 1\] have token weights, others have none"):
        PairCollator()(pairs)
