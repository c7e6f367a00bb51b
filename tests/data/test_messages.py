"""Messages as people have them: tool calls, tools, system prompts, parts, text that is left out."""

import json

import pytest

from lit_tidpo.data import PreferenceDataModule
from lit_tidpo.data.rows import normal_row
from lit_tidpo.errors import InputError

TEMPLATE = (
    "{% if tools %}[TOOLS]{{ tools|tojson }}{{ eos_token }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1]|trim }}"
    "{% for c in m.tool_calls or [] %}[CALL]{{ c.function.name }}"
    "{{ c.function.arguments|tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "How warm is it in Oslo?"}
TOOLS = [{"type": "function", "function": {"name": "temp", "parameters": {"town": None}}}]


def call(town, **content):
    function = {"name": "temp", "arguments": {"town": town, "unit": None}}
    return {"role": "assistant", **content, "tool_calls": [{"id": "c", "function": function}]}


def says(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def read(write_rows, tokenizer_folder):
    """Texts of prompt, chosen and rejected of a file with one row."""

    def run(row):
        data = PreferenceDataModule(write_rows([row]), tokenizer_folder, chat_template=TEMPLATE)
        data.setup("fit")
        (row,) = data._rows["train"]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return tuple(data.tokenizer.decode(row[name]).replace(" ", "") for name in names)

    return run


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_response_may_be_a_tool_call(read, content):
    row = {"prompt": [USER], "chosen": [call("Oslo", **content)], "rejected": [call("Rome")]}
    _, chosen, rejected = read(row)
    assert '[CALL]temp{"town":"Oslo"}' in chosen
    assert '[CALL]temp{"town":"Rome"}' in rejected


def test_a_tool_call_in_the_prompt_needs_no_content(read):
    turns = [USER, call("Oslo", content=None), {"role": "tool", "content": "4"}]
    prompt, *_ = read({"prompt": turns, "chosen": [says("Four.")], "rejected": [says("No.")]})
    assert "[CALL]temp" in prompt


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_the_system_prompt_reach_the_template(read, as_text):
    tools = json.dumps(TOOLS) if as_text else TOOLS
    columns = {"tools": tools, "system": "Be brief."}
    pair = {"prompt": [USER], "chosen": [says("Four.")], "rejected": [says("No.")]}
    prompt, *_ = read({**columns, **pair})
    assert '[TOOLS][{"type":"function"' in prompt
    assert "null" not in prompt
    assert "<system>Bebrief." in prompt


def test_parts_of_text_are_joined(read):
    parts = [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}]
    row = {"prompt": [USER], "chosen": [says(parts)], "rejected": [says("No.")]}
    assert read(row)[1].startswith("Four.")


def test_text_that_the_template_leaves_out_is_told_of(read):
    responses = {"chosen": [says("<think>\nadd\n</think>\nIt is 5.")], "rejected": [says("6.")]}
    with pytest.warns(UserWarning, match=r"leaves out text .* 1 rows, .*'<think>\\nadd"):
        _, chosen, _ = read({"prompt": [USER], **responses})
    assert "think" not in chosen


TEXT = {"prompt": "a", "chosen": " b", "rejected": " c"}
CHAT = {"prompt": [USER], "chosen": [says("b")], "rejected": [says("c")]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**TEXT, "images": ["cat.png"]}, "column 'images' holds"),
        ({**CHAT, "audio": "a.wav"}, "column 'audio' holds"),
        ({**TEXT, "system": "Be brief."}, "'system' is for messages"),
        ({**TEXT, "tools": TOOLS}, "'tools' is for messages"),
        ({**CHAT, "system": 3}, "'system' must be text"),
        ({**CHAT, "tools": "[{"}, "'tools' is no JSON"),
        ({**CHAT, "tools": {"name": "x"}}, "'tools' must be a list"),
        (
            {**CHAT, "system": "A", "prompt": [{"role": "system", "content": "B"}, USER]},
            "both column 'system' and the first message",
        ),
        ({**CHAT, "prompt": [USER, {"role": "user"}]}, "field 'prompt', turn 1: expected"),
        ({**CHAT, "prompt": [{"content": "x"}]}, "field 'prompt', turn 0: expected"),
        (
            {**CHAT, "chosen": [says([{"type": "image", "url": "x.png"}])]},
            "field 'chosen', turn 0: only parts of text",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(row, words):
    with pytest.raises(InputError, match=f"row 4: .*{words}"):
        normal_row(row, 4)


@pytest.mark.parametrize("column", ["images", "system", "tools"])
def test_empty_columns_count_for_nothing(column):
    assert normal_row({**TEXT, column: None}, 0) == normal_row(TEXT, 0)


def test_columns_that_are_not_used_are_named(write_rows, tokenizer_folder, caplog):
    data = PreferenceDataModule(write_rows([{**TEXT, "score": 1, "id": "x"}]), tokenizer_folder)
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("fit")
    assert caplog.text.count("columns ['id', 'score'] are not used") == 1
