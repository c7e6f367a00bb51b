"""GGUF files of a tiny Llama, written by the package that llama.cpp writes them with."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"embed_tokens": "token_embd", "norm": "output_norm"}


def write_gguf(folder: str, target: Path, merged: str = "!!") -> str:
    """Write a saved Llama and its tokenizer of bytes into a GGUF file, in fp32; give the folder.

    The model must have one token more than the tokenizer: a list without merges cannot be written,
    so that two bytes are merged into one.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    target.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(target / f"{merged[0]}.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), merged])
    special = set(tokenizer.all_special_ids)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[token in special] for token in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merged)])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in model.state_dict().items():
        writer.add_tensor(_name(key), _stored(key, value, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(target)


def _name(key: str) -> str:
    if key == "lm_head.weight":
        return "output.weight"
    part = key.removeprefix("model.").removesuffix(".weight")
    if part in NAMES:
        return f"{NAMES[part]}.weight"
    _, number, layer = part.split(".", 2)
    return f"blk.{number}.{LAYER[layer]}.weight"


def _stored(key: str, value: torch.Tensor, config) -> torch.Tensor:
    """llama.cpp rotates neighbouring pairs, transformers halves: rows of queries, keys differ."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, count in heads.items():
        if name in key:
            split = value.reshape(count, 2, value.shape[0] // count // 2, -1)
            return split.swapaxes(1, 2).reshape(value.shape).contiguous()
    return value
