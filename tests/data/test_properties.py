"""What holds for any rows: from text to tokens, batches and log-probs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_tidpo.data.collation import PairCollator
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.models.models import Models
from lit_tidpo.models.packed_attention import use_packed_attention
from lit_tidpo.models.tokenizer import load_tokenizer
from lit_tidpo.testing import tiny_policy
from lit_tidpo.testing.tiny import VOCABULARY

TOKENIZER = load_tokenizer("builtin:policy")
MANY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
# Without surrogates, which are no text; special tokens among it.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXT = st.lists(st.one_of(WORDS, st.sampled_from(["</s>", "<|user|>", " ", "\n"])), max_size=4).map(
    "".join
)


def says(role, text):
    return [{"role": role, "content": text}]


@MANY
@given(prompt=TEXT, chosen=TEXT, rejected=TEXT, as_messages=st.booleans())
def test_no_token_is_lost_or_supervised_twice(prompt, chosen, rejected, as_messages):
    """Prompt and response, side by side, are the whole sequence; one end each."""
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if as_messages:
        row = {
            "prompt": says("user", prompt),
            "chosen": says("assistant", chosen),
            "rejected": says("assistant", rejected),
        }
    tokenise = PairTokenizer(TOKENIZER, TokenizationOptions(max_length=4096))
    found = tokenise(row, 0)
    if found["problem"]:
        assert not found["chosen_ids"]
        return
    assert found["prompt_ids"]
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        ids = [*found["prompt_ids"], *found[f"{side}_ids"]]
        assert found[f"{side}_ids"]
        if as_messages:
            turns = row["prompt"] + row[side]
            whole = TOKENIZER.apply_chat_template(turns, tokenize=False)
            decoded = TOKENIZER.decode(ids)
            assert decoded.removeprefix("<s>").strip() == whole.removeprefix("<s>").strip()
            harmless = says("user", "x") + says("assistant", "y")
            template = TOKENIZER.apply_chat_template(harmless, tokenize=False)
            assert _control(ids) == _control(
                TOKENIZER(template, add_special_tokens=False)["input_ids"]
            )
        else:
            whole = TOKENIZER(prompt + text)["input_ids"]
            while whole[-1:] == [TOKENIZER.eos_token_id]:
                whole = whole[:-1]
            assert ids == [*whole, TOKENIZER.eos_token_id]


def _control(ids):
    return [each for each in ids if each in TOKENIZER.all_special_ids]


@MANY
@given(
    prompt=st.integers(1, 60),
    responses=st.lists(st.integers(1, 60), min_size=2, max_size=2),
    longest=st.integers(2, 64),
    share=st.floats(0.1, 0.9),
)
def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_responses(
    prompt, responses, longest, share
):
    """At most ``max_length`` tokens, and no less than fit."""
    most = min(max(1, int(longest * share)), longest - 1)
    options = TokenizationOptions(max_length=longest, max_prompt_length=most)
    row = {
        "prompt": "a " * prompt,
        "chosen": "b " * responses[0],
        "rejected": "c " * responses[1],
    }
    whole = PairTokenizer(TOKENIZER, TokenizationOptions(max_length=4096))(row, 0)
    found = PairTokenizer(TOKENIZER, options)(row, 0)
    if found["problem"]:
        return
    assert found["length"] <= longest
    kept = found["prompt_ids"][1:]  # behind the begin of the sequence
    assert whole["prompt_ids"][len(whole["prompt_ids"]) - len(kept) :] == kept
    for side in ("chosen", "rejected"):
        ids = found[f"{side}_ids"]
        assert whole[f"{side}_ids"][: len(ids)] == ids
        cut = len(ids) < len(whole[f"{side}_ids"])
        assert cut == found[f"{side}_truncated"]
        assert not cut or len(found["prompt_ids"]) + len(ids) == longest


IDS = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=7)
PAIRS = st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def policies():
    packed = tiny_policy()
    assert use_packed_attention(packed)
    return tiny_policy(), packed


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    pairs=PAIRS,
    multiple=st.sampled_from([1, 4]),
    layout=st.sampled_from(["padded", "packed", "shared_prompt"]),
)
def test_log_probs_of_a_batch_are_those_of_each_row_alone(policies, pairs, multiple, layout):
    """In every layout, whatever the lengths; nothing off the responses."""
    plain, packed = policies
    rows = [
        {"index": place, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        | {"chosen_weights": None, "rejected_weights": None}
        for place, (prompt, chosen, rejected) in enumerate(pairs)
    ]
    batch = PairCollator(multiple=multiple)(rows)
    assert int(batch.response_mask.sum()) == sum(len(c) + len(r) for _, c, r in pairs)
    models = Models(plain if layout == "padded" else packed, layout=layout)
    with torch.no_grad():
        (found,) = models.run([(batch, frozenset())])
        logps = found["policy.logps"]
        expected = torch.zeros_like(logps)
        for place, (prompt, *responses) in enumerate(pairs):
            for side, response in enumerate(responses):
                ids = torch.tensor([*prompt, *response])
                table = plain(ids[None]).logits[0].log_softmax(-1)
                for t in range(len(prompt), len(ids)):
                    expected[side * len(pairs) + place, t] = table[t - 1, ids[t]]
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)
