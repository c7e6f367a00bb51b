"""Ids of words together are those of whole texts, where tokenizers are known to cut words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_tidpo.data.encoding import WordEncoder, cuts_words
from lit_tidpo.data.guarding import Guard
from lit_tidpo.data.tokenization import PairTokenizer, TokenizationOptions

from .conftest import CHATML, SENTENCES, byte_level

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(pre_tokenizer, normalizer=None):
    """A tokenizer with merges across every kind of character that words may hold."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    texts = [
        *SENTENCES,
        "a  b\n\n c",
        "it's 12 345, (or) so...\n\n\tx",
        "é\u0301 ü — 7.\n  Now",
    ] * 4
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["</s>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SMOL = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
KNOWN = {
    "gpt2": trained(GPT2),
    "smollm": trained(SMOL),
    "llama3": trained(split(LLAMA3)),
    "qwen": trained(split(QWEN), normalizers.NFC()),
}
TEXTS = st.lists(
    st.sampled_from(
        [" ", "\n", "\t", "a", "Be", "it's", "'", "7", "12", ".", ",", "—", "é", "</s>"]
    )
    | st.text("a b\n'1.\u0301é", max_size=4),
    max_size=14,
).map("".join)


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, responses=st.lists(TEXTS, min_size=2, max_size=2))
def test_words_have_the_ids_of_whole_texts(name, prompt, responses):
    tokenizer = KNOWN[name]
    encoder = WordEncoder(tokenizer, Guard(tokenizer))
    assert cuts_words(tokenizer)
    texts = [prompt, *(prompt + response for response in responses)]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encoder.encode([texts, [], texts]) == [whole, [], whole]


def added(**options):
    tokenizer = trained(GPT2)
    tokenizer.add_tokens([AddedToken(**{"content": "<x>", **options})])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        trained(split(r"\w+\s?|\W")),
        trained(pre_tokenizers.Metaspace()),
        trained(GPT2, normalizers.Strip()),
        added(lstrip=True),
        added(rstrip=True),
        added(single_word=True),
        added(content="two words"),
    ],
)
def test_other_tokenizers_get_whole_texts(tokenizer):
    assert not cuts_words(tokenizer)
    texts = ["It is 12", "It is 12 <x> two words", "It is 12 é"]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert WordEncoder(tokenizer, Guard(tokenizer)).encode([texts]) == [whole]


def test_words_are_forgotten_when_they_are_many(monkeypatch):
    monkeypatch.setattr("lit_tidpo.data.encoding._KEPT", 20)
    tokenizer = KNOWN["gpt2"]
    encoder = WordEncoder(tokenizer, Guard(tokenizer))
    for count in range(30):
        texts = [f"It is {count} blue", f"It is {count} blue sky", f"It is {count} blue sea"]
        whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        assert encoder.encode([texts]) == [whole]
        assert sum(map(len, encoder._known)) <= 40


def whole_texts(tokenizer, row, is_chat):
    """Ids of a pair as one would write them down: whole texts, token by token."""
    if is_chat:
        texts = [
            tokenizer.apply_chat_template(row["prompt"] + side, tokenize=False, **options)
            for side, options in (
                ([], {"add_generation_prompt": True}),
                (row["chosen"], {}),
                (row["rejected"], {}),
            )
        ]
    else:
        texts = [row["prompt"], row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token else []
    prompt, chosen, rejected = (bos + each for each in ids)
    if is_chat:
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        chosen, rejected = (
            each[: len(each) - each[::-1].index(end)] for each in (chosen, rejected)
        )
    else:
        chosen, rejected = (
            [*each, *([] if each[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id])]
            for each in (chosen, rejected)
        )
    shared = 0
    while shared < len(prompt) and prompt[shared] == chosen[shared] == rejected[shared]:
        shared += 1
    return prompt[:shared], chosen[shared:], rejected[shared:]


WORDS = ["The sky", " is blue", " is bl", "ue", " 12", "\n\nHuman:", " it's</s>", " ", ".", "é"]
SAID = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map("".join)


@pytest.mark.parametrize("is_chat", [False, True])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(SAID, SAID, SAID), min_size=1, max_size=5))
def test_batches_have_the_ids_of_rows_and_of_whole_texts(is_chat, rows):
    tokenizer = CHAT if is_chat else TEXT
    made = []
    for texts in rows:
        row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        if is_chat:
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            row = {name: [{"role": roles[name], "content": t}] for name, t in row.items()}
        made.append(row)
    options = TokenizationOptions(special_tokens="control")
    batched = PairTokenizer(tokenizer, options).batch(made, range(len(made)))
    assert batched == [PairTokenizer(tokenizer, options)(row, n) for n, row in enumerate(made)]
    for row, found in zip(made, batched, strict=True):
        ids = tuple(found[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        assert found["problem"] or ids == whole_texts(tokenizer, row, is_chat)


TEXT, CHAT = byte_level(bos=True), byte_level(bos=False, chat_template=CHATML)
