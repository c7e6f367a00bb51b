"""What ``lit-tidpo data`` shows of a data set."""

from __future__ import annotations

import json

import pytest

from lit_tidpo.cli import main
from lit_tidpo.data.overview import histogram, overview
from lit_tidpo.data.shapes import PAIR as TWO
from lit_tidpo.data.shapes import SHAPES, SINGLE
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError

from .conftest import word_level

PAIR = {"prompt": "a b ", "chosen": "c c c c", "rejected": "d"}
GOOD = {"prompt": "a ", "completion": "b", "label": True}
ROWS = [
    PAIR,
    {**PAIR, "chosen": ""},
    {"prompt": "a", "chosen": 3, "rejected": "b"},
    PAIR,
    {"prompt": "a b ", "chosen": "d", "rejected": "c c c c"},
    {"prompt": "a", "completions": [" c", " d"], "scores": [1, 0]},
    {"prompt": "a", "chosen": 4, "rejected": "b"},
    {"text": "x"},
]


@pytest.fixture
def seen():
    tokenizer = word_level("a b c d")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}"
        "{% endfor %}"
    )
    options = TokenizationOptions(max_length=8, max_prompt_length=3)
    return overview(ROWS, "train", PairTokenizer(tokenizer, options), show=1)


def test_rows_are_counted_by_shape_and_problem(seen):
    assert seen.shapes == {"pairs": 6, "ranked": 1, "none": 1}
    assert (seen.report.rows, seen.report.usable) == (8, 4)
    malformed = "field 'chosen' must be text or a list of messages with 'role' and 'content'"
    assert seen.problems == {"empty response": [1], malformed: [2, 6, 7]}
    assert (seen.repeated, seen.swapped) == ({3: 0}, {4: 0})


def test_lengths_are_uncut_and_cuts_are_counted(seen):
    """By hand: "a b " has 4 tokens, "c c c c" 7 with its end."""
    assert seen.lengths["prompt"] == [4, 4, 4, 1]
    assert seen.lengths["chosen"] == [8, 8, 2, 3]
    assert seen.lengths["longest"] == [12, 12, 12, 4]
    assert seen.report.truncated == {"prompt": 3, "chosen": 2, "rejected": 1}


def test_the_first_rows_are_shown_as_the_model_sees_them(seen):
    # this tokenizer's decoder puts a space between tokens
    assert seen.examples == {0: {"prompt": "  b  ", "chosen": "c   c   c", "rejected": "d </s>"}}
    lines = list(seen.lines())
    assert lines[-3:] == [
        "row 0, prompt | response:",
        "  chosen    '  b  ' | 'c   c   c'",
        "  rejected  ... | 'd </s>'",
    ]
    assert "  1 rows came before: row 3" in lines
    assert "cut at max_length=8: 3 prompt, 2 chosen, 1 rejected" in lines


def test_single_responses_are_counted_by_their_label():
    rows = [GOOD, {**GOOD, "completion": "c"}, {**GOOD, "label": False}, GOOD]
    tokenise = PairTokenizer(word_level("a b c"), TokenizationOptions())
    found = overview(rows, "x", tokenise, show=1, sides=SINGLE)
    lines = list(found.lines())
    assert lines[1] == "usable: 4 labelled responses (3 desirable, 1 undesirable)"
    assert "  1 rows came before: row 3" in lines
    assert "  1 rows came before with the other label: row 2" in lines
    assert lines[-1] == "  desirable 'a  ' | 'b </s>'"


def test_a_histogram_counts_every_value_once():
    values = [1, 2, 12, 13, 14, 30]
    lines = histogram(values)
    assert lines[0] == f"{'1-3':>13} {'#' * 40} 2"
    assert sum(int(line.split()[-1]) for line in lines) == len(values)
    assert lines[-1].split()[0] == "28-30"


def test_long_texts_and_many_rows_are_cut():
    rows = [{**PAIR, "prompt": "a " * 400}, *[{**PAIR, "chosen": ""}] * 10]
    tokenizer = word_level("a b c d")
    lines = list(overview(rows, "x", PairTokenizer(tokenizer, TokenizationOptions())).lines())
    assert "  10 empty response: rows 1, 2, 3, 4, 5, 6, 7, 8 and 2 more" in lines
    assert lines[-2].startswith("  chosen    ... ' a   a   a")


OF_A_PAIR = (
    "holds a pair, others do not: put pairs and single responses into data sets of their own"
)


@pytest.mark.parametrize(
    ("row", "sides", "counts", "problem", "refused"),
    [
        ({**PAIR, "chosen": ""}, TWO, "0 pairs", "empty response", "no usable row: 1 empty resp"),
        (
            {**GOOD, "completion": ""},
            SINGLE,
            "0 labelled responses (0 desirable, 0 undesirable)",
            "empty response",
            "no usable row: 1 empty resp",
        ),
        (
            PAIR,
            SINGLE,
            "0 labelled responses (0 desirable, 0 undesirable)",
            OF_A_PAIR,
            rf"row 0 {OF_A_PAIR} \(split 'x' of 'here'",
        ),
    ],
)
def test_what_a_run_would_refuse_is_shown_first(row, sides, counts, problem, refused):
    tokenise = PairTokenizer(word_level("a b"), TokenizationOptions())
    found = overview([row], "x", tokenise, sides=sides)
    assert list(found.lines())[1:] == [f"usable: {counts}", f"  1 {problem}: row 0"]
    with pytest.raises(InputError, match=refused):
        found.check("drop", "here")


def test_rows_that_a_run_leaves_out_are_refused_by_default():
    tokenise = PairTokenizer(word_level("a b c d"), TokenizationOptions())
    found = overview([{**PAIR, "chosen": ""}, PAIR], "x", tokenise)
    found.check("drop", "here")
    with pytest.raises(InputError, match="1 of 2 rows of split 'x' cannot be used: 1 empty"):
        found.check("raise", "here")


def test_the_command(write_rows, tokenizer_folder, capsys):
    pairs = [{"q": "Q", "chosen": "a\x1b[2J", "rejected": "b"}] * 2
    source = write_rows(pairs)
    main(["data", source, tokenizer_folder, "--columns", '{"prompt": "q"}', "--show", "1"])
    shown = capsys.readouterr().out
    assert "split 'train': 2 rows, shapes: 2 pairs" in shown
    assert r"'<s>Q' | 'a\x1b[2J</s>'" in shown
    both = json.dumps([{"source": source, "columns": {"prompt": "q"}}] * 2)
    main(["data", both, tokenizer_folder, "--show", "0"])
    assert capsys.readouterr().out.count("usable: 2 pairs") == 2
    for words, message in (
        (["--split", "dev"], "no split 'dev'"),
        (["--show", "-1"], "show must be at least 0"),
        (["--columns.best", "q"], r"['best'] are not read"),
    ):
        with pytest.raises(SystemExit):
            main(["data", source, tokenizer_folder, *words])
        assert message in capsys.readouterr().err


def test_the_command_prints_the_shapes(capsys):
    main(["data", "--shapes"])
    shown = capsys.readouterr().out
    for shape in SHAPES:
        assert f"**{shape.name}**" in shown
        assert all(json.dumps(row, ensure_ascii=False) in shown for row in shape.examples.values())
