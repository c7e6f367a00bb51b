"""Ids of pairs: boundaries, BOS, terminators, truncation."""

from __future__ import annotations

import itertools

import pytest

from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions
from lit_tidpo.errors import InputError
from lit_tidpo.models.tokenizer import load_tokenizer

from .conftest import CHATML, SENTENCES, byte_level, word_level

CONVERSATION = {
    "prompt": [{"role": "user", "content": "What is the colour of the sky?"}],
    "chosen": [{"role": "assistant", "content": "The sky is blue."}],
    "rejected": [{"role": "assistant", "content": "It is brown,\nsaid the man."}],
}


def tokenise(tokenizer, row, max_length=1024, max_prompt_length=None):
    return PairTokenizer(tokenizer, TokenizationOptions(max_length, max_prompt_length))(row, 0)


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_ids_worked_by_hand():
    tokenizer = word_level("The sky is blue brown")  # ids 3 to 7; a space is 2, </s> is 1
    row = tokenise(tokenizer, pair("The sky", " is blue", " is brown"))
    assert row["prompt_ids"] == [3, 2, 4]
    assert row["chosen_ids"] == [2, 5, 2, 6, 1]
    assert row["rejected_ids"] == [2, 5, 2, 7, 1]
    assert row["length"] == 8
    assert not row["problem"]
    assert not row["shifted"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("cut", range(7, 30, 2))
def test_parts_join_to_the_ids_of_the_whole_text(bos, cut):
    tokenizer = byte_level(bos=bos)
    for chosen, rejected in itertools.pairwise(SENTENCES):
        prompt = chosen[:cut]
        row = tokenise(tokenizer, pair(prompt, chosen[cut:], rejected))
        start = [0] if bos else []
        for side, text in (("chosen", chosen), ("rejected", prompt + rejected)):
            whole = start + tokenizer(text, add_special_tokens=False).input_ids + [1]
            assert row["prompt_ids"] + row[f"{side}_ids"] == whole


def test_a_boundary_inside_a_token_moves_back_on_both_sides(gpt2_like):
    prompt = "The sky is bl"  # 'blue' is one token, so the prompt's own ids end in others
    row = tokenise(gpt2_like, pair(prompt, "ue", "ack"))
    alone = gpt2_like(prompt, add_special_tokens=False).input_ids
    assert row["shifted"]
    assert len(row["prompt_ids"]) < len(alone)
    assert row["prompt_ids"] == alone[: len(row["prompt_ids"])]
    for side, text in (("chosen", "The sky is blue"), ("rejected", "The sky is black")):
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        assert gpt2_like.decode(ids, skip_special_tokens=True) == text


def test_an_intact_side_is_moved_with_the_other(gpt2_like):
    row = tokenise(gpt2_like, pair("The sky is bl", "ue", " and"))
    assert row["shifted"]
    together = gpt2_like("The sky is bl and", add_special_tokens=False).input_ids
    assert row["prompt_ids"] + row["rejected_ids"] == [*together, 1]


def test_one_bos_where_the_tokenizer_adds_one(llama_like, gpt2_like):
    row = pair("The sky", " is blue", " is brown")
    assert tokenise(llama_like, row)["prompt_ids"].count(0) == 1
    assert tokenise(llama_like, row)["prompt_ids"][0] == 0
    ids = tokenise(gpt2_like, row)["prompt_ids"]
    assert ids == gpt2_like("The sky").input_ids
    assert None not in ids


def test_a_bos_in_the_text_gets_no_second(llama_like):
    ids = tokenise(llama_like, pair("<s>The sky", " is blue", " is brown"))["prompt_ids"]
    assert ids.count(0) == 1


@pytest.mark.parametrize("template", [CHATML, "<s>" + CHATML])
def test_a_rendered_template_has_one_bos(template):
    row = tokenise(byte_level(bos=True, chat_template=template), CONVERSATION)
    assert row["prompt_ids"][0] == 0
    assert row["prompt_ids"].count(0) == 1


def test_a_template_without_bos_stays_so(chatml):
    start = chatml.convert_tokens_to_ids("<|im_start|>")
    assert tokenise(chatml, CONVERSATION)["prompt_ids"][0] == start


@pytest.mark.parametrize("ending", ["", "</s>", "</s></s>"])
def test_text_ends_in_exactly_one_eos(gpt2_like, ending):
    row = tokenise(gpt2_like, pair("The sky", " is blue" + ending, " is brown"))
    for side in ("chosen_ids", "rejected_ids"):
        assert row[side][-1] == gpt2_like.eos_token_id
        assert row[side].count(gpt2_like.eos_token_id) == 1


def test_chat_ends_in_the_terminator_of_its_template(chatml):
    row = tokenise(chatml, CONVERSATION)
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    for side in ("chosen", "rejected"):
        rendered = chatml.apply_chat_template(
            CONVERSATION["prompt"] + CONVERSATION[side], return_dict=False
        )
        newline = rendered.pop()
        assert chatml.decode([newline]) == "\n"
        assert row["prompt_ids"] + row[f"{side}_ids"] == rendered
        assert row[f"{side}_ids"][-1] == end
        assert row[f"{side}_ids"].count(end) == 1
        assert chatml.eos_token_id not in row[f"{side}_ids"]
    opened = chatml.apply_chat_template(
        CONVERSATION["prompt"], add_generation_prompt=True, return_dict=False
    )
    assert row["prompt_ids"] == opened


def test_a_template_without_terminator_is_refused():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(InputError, match="without a special token"):
        tokenise(byte_level(bos=False, chat_template=template), CONVERSATION)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_level(bos=True)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no eos_token"):
        PairTokenizer(tokenizer, TokenizationOptions())


def test_responses_are_cut_independently_on_the_right():
    tokenizer = word_level("p a b c d e")
    row = tokenise(tokenizer, pair("p", " a b c d", " e"), max_length=6, max_prompt_length=1)
    assert row["prompt_ids"] == [3]
    assert row["chosen_ids"] == [2, 4, 2, 5, 2]  # cut: no EOS
    assert row["rejected_ids"] == [2, 8, 1]  # fits: has its EOS
    assert (row["chosen_truncated"], row["rejected_truncated"]) == (True, False)
    assert not row["prompt_truncated"]


def test_a_prompt_is_cut_on_the_left_only_as_far_as_needed():
    tokenizer = word_level("p q r s a b")
    text = pair("p q r s", " a", " b")  # 7 prompt tokens, responses of 3
    assert not tokenise(tokenizer, text, 10, 2)["prompt_truncated"]
    nine = tokenise(tokenizer, text, 9, 2)
    assert nine["prompt_ids"] == tokenizer("p q r s").input_ids[1:]
    assert nine["prompt_truncated"]
    assert nine["chosen_ids"][-1] == 1


def test_a_prompt_keeps_max_prompt_length():
    tokenizer = word_level("p q r s a b c d")
    row = tokenise(tokenizer, pair("p q r s", " a b c d", " b"), 8, 5)
    assert row["prompt_ids"] == tokenizer("q r s").input_ids
    assert len(row["prompt_ids"]) == 5
    assert row["chosen_ids"] == tokenizer(" a b").input_ids[:3]


def test_the_bos_survives_the_cut(llama_like):
    row = tokenise(llama_like, pair("The sky is blue and" * 9, " old", " deep"), 12, 6)
    assert row["prompt_ids"][0] == 0
    assert row["length"] == 12


@pytest.mark.parametrize("max_length", range(2, 40, 3))
@pytest.mark.parametrize("bos", [False, True])
def test_no_row_is_too_long_or_unsupervised(bos, max_length):
    tokenizer = byte_level(bos=bos)
    for n in range(1, 12, 2):
        row = tokenise(tokenizer, pair("sea " * n, " blue" * (12 - n), " old"), max_length)
        assert not row["problem"]
        assert row["chosen_ids"]
        assert row["rejected_ids"]
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        assert row["length"] == len(row["prompt_ids"]) + longest <= max_length


def test_identical_after_truncation():
    tokenizer = word_level("p a b c")
    row = tokenise(tokenizer, pair("p", " a b", " a c"), max_length=4)
    assert row["problem"] == "identical after truncation"
    assert row["chosen_ids"] == []


def test_an_empty_prompt_needs_a_bos(gpt2_like, llama_like):
    row = {"chosen": "Paris ", "rejected": "London"}
    assert tokenise(gpt2_like, row)["problem"] == "empty prompt"
    assert tokenise(llama_like, row)["prompt_ids"] == [0]
    chat = {"chosen": CONVERSATION["chosen"], "rejected": CONVERSATION["rejected"], "prompt": []}
    assert tokenise(byte_level(True, CHATML), chat)["problem"] == "empty prompt"


def test_weights_must_match_the_response_with_its_terminator():
    tokenizer = word_level("p a b")
    row = {**pair("p", " a", " b"), "chosen_weights": [1, 2, 3], "rejected_weights": [1, 2]}
    with pytest.raises(InputError, match=r"'rejected_weights' has 2 weights, but .* 3 tokens"):
        tokenise(tokenizer, row)
    row["rejected_weights"] = [4, 5, 6]
    cut = tokenise(tokenizer, {**row, "chosen": " a a", "chosen_weights": [1, 2, 3, 4, 5]}, 5, 1)
    assert cut["chosen_weights"] == [1, 2, 3, 4]
    assert len(cut["chosen_ids"]) == 4


def test_messages_without_a_template_are_refused(gpt2_like):
    with pytest.raises(InputError, match="no chat template: set chat_template"):
        tokenise(gpt2_like, CONVERSATION)


def test_a_template_that_refuses_the_turns_names_the_row():
    template = "{{ raise_exception('only pirates') }}"
    with pytest.raises(InputError, match=r"row 0: .* \['user'\]: only pirates"):
        tokenise(byte_level(False, template), CONVERSATION)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "max_length must be at least 2"),
        ((8, 8), "less than max_length=8; got 8"),
        ((8, 0), "at least 1"),
    ],
)
def test_lengths_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        TokenizationOptions(*arguments)


def test_load_tokenizer_with_a_template(tokenizer_folder, tmp_path):
    assert load_tokenizer(tokenizer_folder).chat_template is None
    assert load_tokenizer(tokenizer_folder, CHATML).chat_template == CHATML
    file = tmp_path / "template.jinja"
    file.write_text(CHATML, encoding="utf-8")
    assert load_tokenizer(tokenizer_folder, str(file)).chat_template == CHATML
    with pytest.raises(InputError, match="Jinja text or a file"):
        load_tokenizer(tokenizer_folder, "missing.jinja")


def test_load_tokenizer_from_a_folder_without_one(tmp_path):
    with pytest.raises(InputError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path))
