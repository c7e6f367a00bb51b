"""Make the tokenizer, one token a character, and the configuration of the arithmetic policy.

Run ``python -m lit_tidpo.assets.build.arithmetic_tokenizer FOLDER``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

MAX_LENGTH = 64

_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"
_CHARACTERS = "0123456789+=;"


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that starts each text with one BOS and adds no EOS."""
    vocabulary = {token: place for place, token in enumerate([_PAD, _BOS, _EOS, *_CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A $B", special_tokens=[(_BOS, vocabulary[_BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def policy_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Configuration of a Llama model of 0.6 million parameters."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(description="Make the tokenizer of the arithmetic policy.")
    parser.add_argument("folder", type=Path, help="where to write the files")
    folder = parser.parse_args(arguments).folder
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(folder)
    policy_config(tokenizer).save_pretrained(folder)
    print(f"{len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
