"""Decoder families of transformers as tiny random models, a row each.

A row says what has to be set besides ``SIZES``, and what is refused, in which words. What a family
is refused is tested as much as what works. ``make models`` runs all rows and writes
``docs/models.md``; the tests run those of ``SAMPLE``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Experts
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Latent attention
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    # Recurrences
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_dt_rank": 4,
    "mamba_expand": 2,
    "state_size": 4,
    "time_step_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    # Dropout would make a pass differ from the one that it is compared with.
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
"""Set where the configuration of a family has such a field."""


@dataclass(frozen=True)
class Family:
    """A row.

    Attributes:
        name: ``model_type`` of transformers, and after a comma what else tells the row.
        settings: Of the configuration, besides ``SIZES``; None leaves one of those out.
        layout: What ``layout: auto`` chooses.
        refused: Words of the refusal, by what was asked for.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    layout: str = "shared_prompt"
    refused: dict[str, str] = field(default_factory=dict)

    def config(self) -> Any:
        """A tiny configuration."""
        kind = CONFIG_MAPPING[self.name.partition(",")[0]]
        usual = kind()
        known = {key: size for key, size in SIZES.items() if getattr(usual, key, None) is not None}
        known |= {key: SIZES[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        known |= self.settings
        return kind(**{key: value for key, value in known.items() if value is not None})

    def model(self) -> Any:
        """A random model, whose weights are large enough for tokens to differ."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(self.config())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model


CHECKS = ("fit", "anchors", "predict", "export", "LoRA", "attention", "checkpointing")
"""What is checked of each, in :mod:`family_checks`."""

NOT_CAUSAL = dict.fromkeys(CHECKS, "lets tokens see those after them")
NO_ATTENTION = {"attention": "no layer of"}
NO_CHECKPOINTS = {"checkpointing": "does not support activation checkpointing"}

MLA = {"num_key_value_heads": 4}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}

FAMILIES = [
    # Rotary positions
    Family("afmoe"),
    Family("apertus"),
    Family("arcee"),
    Family("aria_text"),
    Family("beam"),
    Family("bitnet"),
    Family("cohere"),
    Family("cohere2"),
    Family("cohere2_moe"),
    Family("cwm"),
    Family("deepseek_v2", {**MLA, "num_experts_per_tok": 2}),
    Family("deepseek_v3", {**MLA, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}),
    Family("diffllama", layout="padded"),
    Family("doge", layout="padded"),
    Family(
        "dots1",
        {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    ),
    Family("ernie4_5"),
    Family("ernie4_5_moe"),
    Family("exaone4", {"layer_types": ["sliding_attention", "full_attention"]}),
    Family("flex_olmo"),
    Family("gemma"),
    Family("gemma2", layout="padded"),
    Family("gemma3_text"),
    Family(
        "gemma3n_text",
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "num_kv_shared_layers": 1,  # keys of the layer before
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 259,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 3,
        },
    ),
    Family("glm"),
    Family("glm4"),
    Family("glm4_moe"),
    Family("gpt_neox"),
    Family("gpt_neox_japanese", layout="padded", refused=NO_CHECKPOINTS),
    Family("gpt_oss", layout="padded"),
    Family("gptj", {"rotary_dim": 4}),
    Family("codegen", {"rotary_dim": 4}),
    Family("granite"),
    Family("granitemoe"),
    Family("granitemoeshared"),
    Family("helium"),
    Family("hunyuan_v1_dense", {"head_dim": 8}),
    Family("hunyuan_v1_moe", {"head_dim": 8}),
    Family("jetmoe", refused=NO_CHECKPOINTS),
    Family("llama"),
    Family(
        "llama, dynamic",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    Family("llama4_text", layout="padded"),
    Family("minicpm3", MLA),
    Family("minimax_m2"),
    Family("ministral", {"head_dim": 8}),
    Family("ministral3", {"head_dim": 8}),
    Family("mistral"),
    Family("mixtral"),
    Family("modernbert-decoder"),
    Family("nanochat"),
    Family("nemotron", {"num_key_value_heads": 2}, layout="padded"),
    Family("olmo"),
    Family("olmo2"),
    Family("olmo3"),
    Family("olmoe"),
    Family("persimmon"),
    Family("phi"),
    Family("phi3"),
    Family("phimoe"),
    Family("qwen2"),
    Family("qwen2_moe", layout="padded"),
    Family("qwen3"),
    Family("qwen3_moe"),
    Family("seed_oss"),
    Family("smollm3"),
    Family("solar_open"),
    Family("stablelm", layout="padded"),
    Family("starcoder2"),
    Family("vaultgemma", layout="padded"),
    # Other positions
    Family("falcon", {"head_dim": None}, layout="padded"),
    Family("falcon, alibi", {"head_dim": None, "alibi": True}, layout="padded"),
    Family("biogpt", layout="padded"),
    Family("bloom", layout="padded"),
    Family("ctrl", {"dff": 48}, refused=NO_CHECKPOINTS),
    Family("gpt2"),
    Family("gpt_bigcode"),
    Family(
        "gpt_neo",
        {"attention_types": [[["global", "local"], 1]], "window_size": 4},
        layout="padded",
    ),
    Family("mpt", layout="padded"),
    Family("openai-gpt", layout="padded", refused=NO_CHECKPOINTS),
    Family("opt", {"word_embed_proj_dim": 32}),
    Family("xglm", {"attention_heads": 4}, layout="padded"),
    # Recurrences and convolutions
    Family("bamba", {"attn_layer_indices": [1], "mamba_chunk_size": 16}, layout="padded"),
    Family("falcon_h1", {"mamba_d_ssm": 64, "mamba_chunk_size": 16}, layout="padded"),
    Family("falcon_mamba", layout="padded", refused=NO_ATTENTION),
    Family(
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "mamba_chunk_size": 16},
        layout="padded",
    ),
    Family("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}, layout="padded"),
    Family("lfm2", {"layer_types": ["conv", "full_attention"]}, layout="padded"),
    Family(
        "lfm2_moe",
        {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        layout="padded",
    ),
    Family("mamba", layout="padded", refused=NO_ATTENTION),
    Family(
        "mamba2",
        {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
        layout="padded",
        refused=NO_ATTENTION,
    ),
    Family("minimax", {"layer_types": ["linear_attention", "full_attention"]}, layout="padded"),
    Family(
        "nemotron_h",
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "ssm_state_size": 4,
            "chunk_size": 16,
        },
        layout="padded",
    ),
    Family("olmo_hybrid", LINEAR, layout="padded"),
    Family("qwen3_5_text", LINEAR, layout="padded"),
    Family("qwen3_next", LINEAR, layout="padded"),
    Family(
        "recurrent_gemma",
        {"attention_window_size": 8, "block_types": ["recurrent", "attention"]},
        layout="padded",
    ),
    Family("rwkv", layout="padded", refused=NO_ATTENTION),
    Family("xlstm", {"v_head_dim": None}, layout="padded", refused=NO_ATTENTION),
    Family(
        "zamba",
        {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "hybrid"]},
        layout="padded",
    ),
    Family(
        "zamba2",
        {
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "mamba", "hybrid"],
            "hybrid_layer_ids": [2],
            "num_mem_blocks": 1,
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
        },
        layout="padded",
    ),
    # No causal language models
    Family("bert", refused=NOT_CAUSAL),
    Family("roberta", refused=NOT_CAUSAL),
    Family(
        "xlnet",
        {"max_position_embeddings": None, "d_model": 32, "d_head": 8, "d_inner": 48},
        refused=dict.fromkeys(CHECKS, "row by row"),
    ),
]
