"""Make the tokenizer and the configuration of the shipped policy.

Run ``python -m lit_tidpo.assets.build.tokenizer --vocab-size 4096 --output FOLDER``. The tokenizer
is a byte-level BPE trained on the ``train`` split of the shipped preference set.
"""

from __future__ import annotations

import argparse
import json
import keyword
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).parents[1] / "stdlib_defects"
MAX_LENGTH = 1024

_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
# No text between the markers: content may start with a newline and an indentation, one token.
_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Text that tokens do not cross, first match first. Most take along one space before them.
_UNITS = (
    r"\n *",  # a line end with the next indentation, so that a response starts with its own token
    r' ?(?:"""|\'\'\')',
    r" ?[^\W\d]+",  # names and words
    r" ?\d",  # digits, one by one
    r" ?(?:\*\*=|//=|>>=|<<=|\.\.\.)",
    r" ?(?:->|:=|[-=!<>+*/%&|^@]=|<<|>>|\*\*|//)",
    r" ?[-+*/%@&|^~<>=!]",
    r" ?[(\[{]+",
    r"[)\]},:;.]+",
    r" +(?= )",  # all of a run of spaces but the last
    r" ?[^\s\w]",
    r"\s",
)
_OPERATORS = [
    *("==", "!=", "<=", ">=", "<<", ">>", "**", "//", "->", ":=", "..."),
    *("+=", "-=", "*=", "/=", "//=", "%=", "**=", "|=", "&="),
]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer for Python code.

    Args:
        texts: What to train on.
        vocab_size: Number of tokens with the special ones.

    Returns:
        A tokenizer that starts each text with one BOS and adds no EOS.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(_UNITS)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [_PAD, _BOS, _EOS, *_ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            # Offsets of tokens leave out the space before a word, so that they match spans.
            processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{_BOS} $A",
                pair=f"{_BOS} $A $B",
                special_tokens=[(_BOS, special.index(_BOS))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        extra_special_tokens=_ROLES,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def training_texts(folder: Path) -> Iterator[str]:
    """Each prompt with its true body, once however many defects were planted in it.

    Keywords and operators follow, often enough that each becomes one token.
    """
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        rows = map(json.loads, file)
        yield from dict.fromkeys(row["prompt"] + row["chosen"] for row in rows)
    yield from [f"{word} {word}" for word in (*keyword.kwlist, *_OPERATORS)] * 100


def policy_config(tokenizer: PreTrainedTokenizerFast, sizes: argparse.Namespace) -> LlamaConfig:
    """Configuration of a small Llama model for a tokenizer."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files and print the number of the model's parameters."""
    parser = argparse.ArgumentParser(description="Make the tokenizer of the shipped policy.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.jsonl")
    parser.add_argument(
        "--vocab-size", type=int, default=4096, help="tokens, special ones included"
    )
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--intermediate-size", type=int, default=688)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    options = parser.parse_args(arguments)
    tokenizer = train_tokenizer(training_texts(options.data), options.vocab_size)
    tokenizer.save_pretrained(options.output)
    config = policy_config(tokenizer, options)
    config.save_pretrained(options.output)
    with torch.device("meta"):
        parameters = LlamaForCausalLM(config).num_parameters()
    print(f"{len(tokenizer)} tokens, {parameters:,} parameters")


if __name__ == "__main__":
    main()
