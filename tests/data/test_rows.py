"""Shapes of rows and their normal form."""

from __future__ import annotations

import math

import pytest

from lit_tidpo.data.fields import row_numbers
from lit_tidpo.data.rows import normal_row
from lit_tidpo.errors import InputError

SEVERAL = "more than one turn in a response, which data.trained_turns=all trains on"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def parts(row):
    pair = normal_row(row, 0)
    return pair.prompt, pair.responses["chosen"], pair.responses["rejected"]


def test_explicit_text_is_left_alone():
    row = {"prompt": "Q: ", "chosen": " a", "rejected": "b "}
    assert parts(row) == ("Q: ", " a", "b ")


def test_explicit_messages():
    row = {"prompt": [user("Q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert parts(row) == ([user("Q")], [assistant("a")], [assistant("b")])


def test_text_prompt_before_messages_becomes_a_user_turn():
    row = {"prompt": "Q", "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert parts(row) == ([user("Q")], [assistant("a")], [assistant("b")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky", "The sky is blue", "The"),
        ("Paris ", "London", ""),
        ("It is blue.", "It is brown.", "It is"),
        ("a\n\nb c", "a\n\nb d", "a\n\nb"),
        ("  lead x", "  lead y", "  lead"),
    ],
)
def test_implicit_prompt_of_text_ends_at_a_word(chosen, rejected, prompt):
    assert parts({"chosen": chosen, "rejected": rejected}) == (
        prompt,
        chosen[len(prompt) :],
        rejected[len(prompt) :],
    )


def test_implicit_prompt_of_messages_ends_at_a_turn():
    shared = [user("Q"), assistant("A"), user("R")]
    row = {"chosen": [*shared, assistant("yes 1")], "rejected": [*shared, assistant("yes 2")]}
    assert parts(row) == (shared, [assistant("yes 1")], [assistant("yes 2")])


def test_ultrafeedback_conversations_win_over_the_prompt_field():
    row = {
        "prompt": "Q",
        "chosen": [user("Q in full"), assistant("a")],
        "rejected": [user("Q in full"), assistant("b")],
        "score_chosen": 8.0,
    }
    assert parts(row) == ([user("Q in full")], [assistant("a")], [assistant("b")])


def test_keys_that_a_columnar_file_filled_with_none_are_dropped():
    turn = {"role": "assistant", "content": "a", "tool_calls": None}
    row = {"prompt": [user("Q")], "chosen": [turn], "rejected": [assistant("b")]}
    assert parts(row)[1] == [assistant("a")]


def test_dialogue_prompt_ends_after_the_last_shared_assistant_mark():
    shared = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant:"
    row = {"chosen": shared + " because", "rejected": shared + " be quiet"}
    assert parts(row) == (shared, " because", " be quiet")


def test_rejected_that_does_not_start_with_the_prompt_is_a_problem():
    row = {
        "chosen": "\n\nHuman: hi\n\nAssistant: a",
        "rejected": "\n\nHuman: ho\n\nAssistant: b",
    }
    assert normal_row(row, 0).problem == "different prompts"


def test_dialogues_that_part_before_the_last_turn_are_a_problem():
    start = "\n\nHuman: hi\n\nAssistant:"
    row = {
        "chosen": f"{start} a\n\nHuman: go on\n\nAssistant: c",
        "rejected": f"{start} b\n\nHuman: go on\n\nAssistant: d",
    }
    assert normal_row(row, 0).problem == SEVERAL


def test_conversations_that_part_before_the_last_turn_are_a_problem():
    row = {
        "chosen": [user("Q"), assistant("a"), user("R"), assistant("c")],
        "rejected": [user("Q"), assistant("b"), user("R"), assistant("d")],
    }
    assert normal_row(row, 0).problem == SEVERAL


def test_conversations_with_different_prompts_are_a_problem():
    row = {"chosen": [user("Q"), assistant("a")], "rejected": [user("R"), assistant("b")]}
    assert normal_row(row, 0).problem == "different prompts"


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        ("same", "same", "identical responses"),
        ("", "b", "empty response"),
        ("a", " \n", "empty response"),
    ],
)
def test_unusable_pairs_have_a_problem(chosen, rejected, problem):
    text = {"prompt": "Q:", "chosen": chosen, "rejected": rejected}
    chat = {"prompt": [user("Q")], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    whole = {
        "chosen": [user("Q"), assistant(chosen)],
        "rejected": [user("Q"), assistant(rejected)],
    }
    for row in (text, chat, whole):
        assert normal_row(row, 0).problem == problem


def test_identical_implicit_texts():
    assert normal_row({"chosen": "a b", "rejected": "a b"}, 0).problem == "identical responses"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": "a"}, "row 7: field 'rejected' must be text"),
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "field 'chosen' must be .* got 3"),
        ({"prompt": 1.5, "chosen": "a", "rejected": "b"}, "field 'prompt' must be"),
        ({"chosen": "a", "rejected": [assistant("b")]}, "is text, the other messages"),
        ({"prompt": [user("Q")], "chosen": "a", "rejected": "b"}, "'prompt' holds messages"),
        ({"chosen": [{"content": "no role"}], "rejected": "b"}, "field 'chosen'"),
        ({"chosen": "a", "rejected": "b", "chosen_weights": [1.0]}, "field 'rejected_weights'"),
        (
            {"chosen": "a", "rejected": "b", "chosen_weights": [-1], "rejected_weights": [1]},
            "field 'chosen_weights' must be a list of numbers >= 0",
        ),
        (
            {"chosen": "a", "rejected": "b", "chosen_weights": [1], "rejected_weights": None},
            "in every row or in none; got None",
        ),
    ],
)
def test_malformed_rows_name_row_field_and_value(row, message):
    with pytest.raises(InputError, match=message):
        normal_row(row, 7)


def test_weights_are_carried_along():
    row = {"chosen": "x a", "rejected": "x b", "chosen_weights": [1, 2], "rejected_weights": [0.5]}
    pair = normal_row(row, 0)
    assert pair.weights == {"chosen": [1.0, 2.0], "rejected": [0.5]}


@pytest.mark.parametrize("prompt", [None, "", " \n"])
def test_a_prompt_that_is_there_but_empty_is_a_problem(prompt):
    """Not an implicit one: the other rows have theirs."""
    pair = normal_row({"prompt": prompt, "chosen": "It is 4.", "rejected": "It is 5."}, 0)
    assert pair.problem == "empty prompt"
    answers = [[{"role": "assistant", "content": text}] for text in ("4", "5")]
    row = {"prompt": None, "chosen": answers[0], "rejected": answers[1]}
    assert normal_row(row, 0).problem == "empty prompt"


def test_a_null_prompt_beside_whole_conversations_is_none():
    turns = [
        [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": text}]
        for text in ("4", "5")
    ]
    row = {"prompt": None, "chosen": turns[0], "rejected": turns[1]}
    assert normal_row(row, 0).problem == ""


def test_a_prompt_that_both_responses_repeat_is_a_problem():
    row = {"prompt": "Q: 2+2\nA:", "chosen": "Q: 2+2\nA: 4", "rejected": "Q: 2+2\nA: 5"}
    assert normal_row(row, 0).problem == "prompt repeated in both responses"
    assert normal_row({**row, "rejected": " 5"}, 0).problem == ""


def test_the_numbers_of_a_row_are_read_where_there_are_any():
    row = {"chosen": "x a", "rejected": "x b", "score_chosen": 4, "pair_weight": 0.5}
    found = {"score_chosen": 4.0, "score_rejected": None, "pair_weight": 0.5}
    assert row_numbers(row, 0) == found


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("pair_weight", -1.0, "a number of 0 or more"),
        ("pair_weight", math.inf, "a number of 0 or more"),
        ("score_chosen", "good", "a finite number"),
        ("score_rejected", math.nan, "a finite number"),
    ],
)
def test_other_numbers_are_refused(name, value, expected):
    with pytest.raises(InputError, match=f"row 3: column '{name}' holds .*; expected {expected}"):
        row_numbers({name: value}, 3)
