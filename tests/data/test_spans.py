"""Marked spans of responses as weights of their tokens."""

from __future__ import annotations

import json

import pytest

from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError

from .conftest import CHATML, byte_level, word_level

WORDS = "The sky is blue brown"
PLAIN = {"prompt": "The sky", "chosen": " is blue", "rejected": " is brown"}
MESSAGES = {
    "prompt": [{"role": "user", "content": "What is the colour of the sky?"}],
    "chosen": [{"role": "assistant", "content": "The sky is blue."}],
    "rejected": [{"role": "assistant", "content": "It is brown,\nsaid the man."}],
}


def marked(row, chosen, rejected):
    return {**row, "chosen_spans": chosen, "rejected_spans": rejected}


def tokenise(tokenizer, row, **options):
    return PairTokenizer(tokenizer, TokenizationOptions(**options))(row, 0)


def test_by_hand():
    """Tokens: blank, is, blank, blue, end. The blank before `blue` ends where the span starts."""
    row = tokenise(word_level(WORDS), marked(PLAIN, [[4, 6]], [[0, 2], [8, 9]]))
    assert row["chosen_weights"] == [0, 0, 0, 1, 0]
    assert row["rejected_weights"] == [1, 1, 0, 1, 0]


def test_spans_are_of_the_column_where_the_prompt_is_in_it():
    shared = {"chosen": "The sky is blue", "rejected": "The sky is brown"}
    row = tokenise(word_level(WORDS), marked(shared, [[11, 15]], []))
    assert sum(row["chosen_weights"]) == 1
    assert row["chosen_weights"][-2:] == [1, 0]
    assert sum(row["rejected_weights"]) == 0


@pytest.mark.parametrize("bos", [False, True])
def test_of_messages_they_are_of_the_content(bos):
    tokenizer = byte_level(bos=bos, chat_template=CHATML)
    row = marked(MESSAGES, [[11, 15]], [[0, 2]])
    found = tokenise(tokenizer, row)
    for side, text in (("chosen", "blue"), ("rejected", "It")):
        ids, weights = found[f"{side}_ids"], found[f"{side}_weights"]
        kept = [token for token, weight in zip(ids, weights, strict=True) if weight]
        assert text in tokenizer.decode(kept)
        assert len(tokenizer.decode(kept).strip()) <= len(text) + 2


def test_they_are_cut_with_the_response():
    row = tokenise(word_level(WORDS), marked(PLAIN, [[4, 8]], []), max_length=7)
    assert row["chosen_weights"] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (marked(PLAIN, [[4, 9]], []), r"'chosen_spans' must be a list of \[start, end\]"),
        (marked(PLAIN, [[4, 4]], []), "characters of the response's text from 0 to 8"),
        (marked(PLAIN, [[0, 1]], None), "'rejected_spans' must be a list"),
        (marked(PLAIN, [[0.0, 1.0]], []), "'chosen_spans' must be a list"),
        (
            {**marked(PLAIN, [], []), "chosen_weights": [1.0] * 5, "rejected_weights": [1.0] * 5},
            "both 'chosen_weights' and 'chosen_spans'",
        ),
    ],
)
def test_spans_that_are_none_are_refused(row, message):
    with pytest.raises(InputError, match=message):
        tokenise(word_level(WORDS), row)


def test_a_template_that_changes_the_text_is_refused():
    shouting = CHATML.replace("m.content", "m.content | upper")
    tokenizer = byte_level(bos=False, chat_template=shouting)
    with pytest.raises(InputError, match="the chat template changes the response's text"):
        tokenise(tokenizer, marked(MESSAGES, [[0, 3]], []))


def test_special_tokens_in_the_text_are_refused():
    tokenizer = byte_level(bos=False, chat_template=CHATML)
    end = tokenizer.eos_token
    row = {**MESSAGES, "chosen": [{"role": "assistant", "content": f"The {end} sky"}]}
    with pytest.raises(InputError, match="special tokens in the text of messages leave marked"):
        tokenise(tokenizer, marked(row, [[0, 3]], []))


def test_they_reach_the_batch_as_supplied_weights(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "x", "chosen": f"a{n}", "rejected": f"b{n}", "chosen_spans": [[0, 1]],
         "rejected_spans": [[1, 2]]}
        for n in range(2)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceDataModule(
        str(file), "builtin:policy", cache_dir=str(tmp_path / "cache"), batch_size=2
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.supplied_weights.sum() > 0
    assert bool((batch.supplied_weights[~batch.response_mask] == 0).all())
