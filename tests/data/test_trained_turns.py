"""Responses of several turns: the assistant's are trained on, those of others are context."""

from __future__ import annotations

import pytest

from lit_tidpo.data.collation import RowsCollator
from lit_tidpo.data.overview import overview
from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError

from .conftest import word_level


def turn(role, content):
    return {"role": role, "content": content}


def user(content):
    return turn("user", content)


def says(content):
    return turn("assistant", content)


# Each turn is its role, a space, its words and " </s>", with a space after it.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PAIR = {
    "chosen": [user("a"), says("b"), user("c d"), says("e")],
    "rejected": [user("a"), says("f f")],
}
TOOL = {
    "prompt": [user("a")],
    "chosen": [says("b"), turn("tool", "c"), says("d"), user("c"), says("e f")],
    "rejected": [says("f"), user("d"), says("e")],
}
TEXT = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c d\n\nAssistant: e",
    "rejected": "\n\nHuman: a\n\nAssistant: f f",
}
# Words and spaces are tokens: "b </s>" has 3, " user c d </s> assistant " 11, "e </s>" 3.
BY_HAND = {
    "chosen": "...xxxxxxxxxxx...",
    "rejected": None,
}
TOOL_BY_HAND = {
    "chosen": "...xxxxxxxxx...xxxxxxxxx.....",
    "rejected": "...xxxxxxxxx...",
}
# The words of this text are parted by spaces: a part of "b\n\nHuman:" is the assistant's.
TEXT_BY_HAND = {
    "chosen": "..xxxx...",
    "rejected": None,
}


def tokenizer_of(template=TEMPLATE):
    found = word_level("a b c d e f user assistant tool")
    found.chat_template = template
    return found


def tokenise(row, tokenizer=None, **options):
    rows = RowOptions(trained_turns="all")
    return PairTokenizer(tokenizer or tokenizer_of(), TokenizationOptions(rows=rows, **options))(
        row, 0
    )


def flags(drawn):
    return None if drawn is None else [mark == "x" for mark in drawn]


@pytest.mark.parametrize(
    ("row", "drawn"), [(PAIR, BY_HAND), (TOOL, TOOL_BY_HAND), (TEXT, TEXT_BY_HAND)]
)
def test_context_is_counted_by_hand(row, drawn):
    found = tokenise(row)
    assert found["problem"] == ""
    for side in ("chosen", "rejected"):
        assert found[f"{side}_context"] == flags(drawn[side])
        ids = found[f"{side}_ids"]
        assert drawn[side] is None or len(ids) == len(drawn[side])


@pytest.mark.parametrize(
    ("row", "trained"),
    [(TOOL, "b<|im_end|>d<|im_end|>e f<|im_end|>"), (TEXT, " b e</s>")],
)
def test_tokens_of_context_are_those_between_the_turns(row, trained, chatml):
    """Of byte-level BPE: what is trained on decodes to the assistant's words and terminators."""
    found = tokenise(row, chatml)
    ids, others = found["chosen_ids"], found["chosen_context"]
    own = [token for token, is_other in zip(ids, others, strict=True) if not is_other]
    assert chatml.decode(own) == trained


@pytest.mark.parametrize("row", [PAIR, TEXT])
def test_by_default_such_rows_are_refused_and_the_option_is_told(row):
    single = PairTokenizer(tokenizer_of(), TokenizationOptions())
    assert (
        "more than one turn in a response, which data.trained_turns=all"
        in single(row, 0)["problem"]
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**PAIR, "rejected": [user("a"), says("f"), user("c")]}, "a response ends in a turn that"),
        ({**TEXT, "chosen": f"{TEXT['chosen']}\n\nHuman: f"}, "a response ends in a turn that"),
        ({**TEXT, "chosen": f"{TEXT['chosen']}\n\nHuman: f\n\nAssistant: "}, "empty response"),
    ],
)
def test_a_response_has_to_end_with_the_assistant(row, problem):
    assert tokenise(row)["problem"].startswith(problem)


def test_context_alone_is_nothing_to_train_on():
    start = [user("a"), says("b")]  # and the user's next turn parts them
    row = {
        "chosen": [*start, user("c c c c"), says("d")],
        "rejected": [*start, user("d"), says("e")],
    }
    assert tokenise(row)["chosen_context"][-4:] == [True, False, False, False]
    assert tokenise(row, max_length=16)["problem"] == "no turn of the assistant after truncation"


def test_a_template_that_changes_turns_which_others_follow_is_refused():
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last else 'f' }}")
    with pytest.raises(InputError, match="row 0: the chat template renders turns of the assistant"):
        tokenise(TOOL, tokenizer_of(template))


def test_a_batch_has_a_mask_and_no_weights_of_context():
    plain = tokenise({"prompt": [user("a")], "chosen": [says("b")], "rejected": [says("c")]})
    assert RowsCollator()([plain]).context is None
    weighed = {**TOOL, "chosen_weights": [1.0] * 29, "rejected_weights": [2.0] * 15}
    batch = RowsCollator()([tokenise(weighed)])
    assert batch.host.response_mask.sum(-1).tolist() == [11, 6]
    assert batch.supplied_weights.sum(-1).tolist() == [11.0, 12.0]
    start = int(batch.prompt_lengths[0])
    assert batch.response_mask[0, start:].tolist() == [not x for x in flags(TOOL_BY_HAND["chosen"])]


def test_the_overview_shows_where_context_is():
    tokenise_all = PairTokenizer(
        tokenizer_of(), TokenizationOptions(rows=RowOptions(trained_turns="all"))
    )
    (example,) = overview([PAIR], "x", tokenise_all).examples.values()
    parts = ["".join(part.split()) for part in example["chosen"].split("|")]
    assert parts == ["b</s>", "context:usercd</s>assistant", "e</s>"]
