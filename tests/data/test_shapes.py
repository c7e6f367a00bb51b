"""Each shape that is documented is read, and what is malformed is told by row."""

from __future__ import annotations

from collections import Counter

import pytest

from lit_tidpo.data.ranked import RowOptions
from lit_tidpo.data.rows import normal_row
from lit_tidpo.data.shapes import COLUMNS, SHAPES, shape_of
from lit_tidpo.errors import InputError

from .test_rows import assistant, user

EXAMPLES = [
    pytest.param(shape, row, id=f"{shape.name}: {what}")
    for shape in SHAPES
    for what, row in shape.examples.items()
]


def parts(row, **options):
    pair = normal_row(row, 0, RowOptions(**options))
    return pair.prompt, pair.responses["chosen"], pair.responses["rejected"]


@pytest.mark.parametrize(("shape", "row"), EXAMPLES)
def test_each_example_is_read_as_the_shape_that_it_shows(shape, row):
    assert shape_of(frozenset(row)) is shape
    assert set(row) <= COLUMNS
    found = normal_row(row, 0)
    assert found.problem == ""
    assert found.prompt
    assert tuple(found.responses) == shape.sides
    assert len({str(response) for response in found.responses.values()}) == len(shape.sides)
    assert found.label == row.get("label")


OTHERS_LAST = "a response ends in a turn that is not the assistant's"
GOOD = {"prompt": "Q", "completion": "a", "label": True}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": None}, "empty prompt"),
        ({"completion": " "}, "empty response"),
        ({"completion": "Q a"}, "prompt repeated in the response"),
        ({"completion": [{"role": "user", "content": "b"}]}, OTHERS_LAST),
        (
            {
                "completion": None,
                "messages": [{"role": each, "content": "b"} for each in ("assistant", "user")],
            },
            OTHERS_LAST,
        ),
    ],
)
def test_single_responses_that_cannot_be_trained_on(change, problem):
    assert normal_row({**GOOD, **change}, 0).problem == problem


@pytest.mark.parametrize("label", [None, 2, "yes", 0.5, [True]])
def test_a_label_is_true_or_false(label):
    with pytest.raises(InputError, match=r"row 3: 'label' tells whether.*expected true or false"):
        normal_row({**GOOD, "label": label}, 3)


def test_a_row_with_both_a_pair_and_a_label_is_a_pair():
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "label": True, "completion": "c"}
    assert tuple(normal_row(row, 0).responses) == ("chosen", "rejected")


def test_a_kto_row_of_llama_factory():
    row = {"instruction": "Add.", "input": "2+2", "output": "4", "label": 1}
    found = normal_row(row, 0)
    assert found.prompt == [{"role": "user", "content": "Add.\n2+2"}]
    assert found.responses == {"completion": [{"role": "assistant", "content": "4"}]}
    assert found.label is True


def test_sharegpt_as_found_in_public():
    """A row of LLaMA-Factory's dpo_en_demo, cut."""
    row = {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi!"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "A game?"},
        ],
        "chosen": {"from": "gpt", "value": "Chess."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    shared = [{"role": "system", "content": "Be kind."}, user("Hi!"), assistant("Hello.")]
    assert parts(row) == ([*shared, user("A game?")], [assistant("Chess.")], [assistant("No.")])


def test_sharegpt_calls_of_functions_and_what_they_gave():
    call = {"from": "function_call", "value": '{"name": "temp", "arguments": {"town": "Oslo"}}'}
    row = {
        "conversations": [
            {"from": "human", "value": "How warm?"},
            call,
            {"from": "observation", "value": "4"},
        ],
        "chosen": {"from": "gpt", "value": "Four."},
        "rejected": call,
    }
    function = {"name": "temp", "arguments": {"town": "Oslo"}}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }
    prompt = [user("How warm?"), called, {"role": "tool", "content": "4"}]
    assert parts(row) == (prompt, [assistant("Four.")], [called])


def test_alpaca_joins_instruction_and_input_and_keeps_the_history():
    row = {"instruction": "Double it.", "input": "4", "chosen": "8", "rejected": "44"}
    assert parts(row) == ([user("Double it.\n4")], [assistant("8")], [assistant("44")])
    pair = {"instruction": "Q", "input": "", "output": ["a", "b"], "history": [["P", "p"]]}
    turns = [user("P"), assistant("p"), user("Q")]
    assert parts(pair) == (turns, [assistant("a")], [assistant("b")])


RANKED = {
    "source": "sharegpt",
    "instruction": "Q",
    "models": ["x"] * 4,
    "completions": [
        {"model": "x", "response": "two", "overall_score": 2.0, "fine-grained_score": 4.5},
        {"model": "x", "response": "nine", "overall_score": 9.0, "fine-grained_score": 4.0},
        {"model": "x", "response": "seven", "overall_score": 7.0, "fine-grained_score": 1.0},
        {"model": "x", "response": "one", "overall_score": 1.0, "fine-grained_score": 1.5},
    ],
}


@pytest.mark.parametrize(
    ("options", "chosen", "rejected"),
    [
        ({"against": "worst"}, "nine", "one"),
        ({"against": "next"}, "nine", "seven"),
        ({"against": "worst", "score": "fine-grained_score"}, "two", "seven"),
    ],
)
def test_the_best_completion_stands_against_a_lower_one(options, chosen, rejected):
    assert parts(RANKED, **options) == ([user("Q")], [assistant(chosen)], [assistant(rejected)])


def test_a_random_lower_completion_is_the_same_in_every_run_and_each_comes():
    picked = [
        normal_row(RANKED, number).responses["rejected"][0]["content"] for number in range(300)
    ]
    assert picked == [normal_row(RANKED, n).responses["rejected"][0]["content"] for n in range(300)]
    counts = Counter(picked)
    assert set(counts) == {"one", "two", "seven"}
    assert min(counts.values()) > 60


@pytest.mark.parametrize("scores", [[1, 1], [1], []])
def test_completions_without_a_lower_one_are_a_problem(scores):
    row = {"prompt": "Q", "completions": ["a", "b"][: len(scores)], "scores": scores}
    assert normal_row(row, 0).problem == "no completion with a lower score"


def test_an_empty_instruction_is_a_problem():
    assert normal_row({**RANKED, "instruction": ""}, 0).problem == "empty prompt"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Q", "output": "a"}, "'output' must be two responses"),
        ({"instruction": "Q", "output": ["a", "b", "c"]}, "'output' must be two responses"),
        ({"instruction": 3, "output": ["a", "b"]}, "'instruction' and 'input' must be text"),
        ({"prompt": "Q", "completions": "a"}, "'completions' must be a list"),
        ({"prompt": "Q", "completions": ["a"], "scores": [1, 2]}, "1 'completions' with 2"),
        ({"prompt": "Q", "completions": ["a"]}, "completion 0 must have a text"),
        (
            {"prompt": "Q", "completions": [{"text": "a", "score": "N/A"}]},
            r"completion 0 .*data.score\); got \{'text': 'a', 'score': 'N/A'\}",
        ),
        (
            {"conversations": [{"from": "human", "value": 3}], "chosen": "a", "rejected": "b"},
            "field 'prompt', turn 0",
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "function_call", "value": "{"},
                "rejected": "b",
            },
            "turn 0: the value of a 'function_call' is no JSON",
        ),
        ({"messages": "Q", "label": True}, "'messages' must be a list of turns"),
    ],
)
def test_malformed_rows_are_told_by_number(row, words):
    with pytest.raises(InputError, match=f"row 5: .*{words}"):
        normal_row(row, 5)


def test_scores_that_are_not_there_are_named():
    with pytest.raises(InputError, match="one of \\('gold',\\)"):
        normal_row(RANKED, 0, RowOptions(score="gold"))
    with pytest.raises(InputError, match="against='best': expected one of"):
        RowOptions(against="best")
