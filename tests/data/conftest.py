"""Tokenizers and files made on the spot."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The sky is blue and the sea is deep.",
    "It is brown, said the man who lives by the sea.",
    "Paris is a city; London is another city, and both are old.",
    "What is the colour of the sky?",
    "user assistant system Human: Assistant:",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(bos: bool, chat_template: str | None = None, pad: str | None = None):
    """A byte-level BPE tokenizer like GPT-2's; with `bos`, one that adds <s> like Llama's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<pad>"],
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    marks = ("<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token=pad,
        chat_template=chat_template,
    )


def word_level(words: str):
    """One id per word, in the order given; words and spaces are tokens: easy to check by hand."""
    vocabulary = {"<unk>": 0, "</s>": 1, " ": 2}
    for word in words.split():
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def gpt2_like():
    """No BOS, pad is EOS."""
    return byte_level(bos=False, pad="</s>")


@pytest.fixture(scope="session")
def llama_like():
    """Adds a BOS to plain text; no pad token."""
    return byte_level(bos=True)


@pytest.fixture(scope="session")
def chatml():
    """Chat template without BOS, newline after its terminator."""
    return byte_level(bos=False, chat_template=CHATML, pad="<pad>")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, llama_like):
    folder = tmp_path_factory.mktemp("tokenizer")
    llama_like.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as a JSON Lines file and give its path."""

    def write(rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep each test's cache to itself."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def numbered_rows():
    """Make pairs with a prompt of their own each; lengths vary."""

    def make(count):
        return [
            {
                "prompt": f"Question {n}:",
                "chosen": " yes" * (1 + n % 5),
                "rejected": " no" * (1 + n % 3),
            }
            for n in range(count)
        ]

    return make
