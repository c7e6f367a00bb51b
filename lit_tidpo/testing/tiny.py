"""Models and batches that cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch, TokenScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 48
"""Entries of the tiny models' vocabulary; 0 is padding, 1 begins and 2 ends a sequence."""


def tiny_policy(
    family: Literal["llama", "gpt2"] = "llama", seed: int = 0, attention: str = "sdpa"
) -> PreTrainedModel:
    """A random causal language model of two layers.

    Args:
        family: ``llama`` has rotary positions, ``gpt2`` has absolute ones.
        seed: Seed of the weights.
        attention: Attention kernel.

    Returns:
        The model in train mode, without dropout.
    """
    import transformers

    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config: transformers.PretrainedConfig
    if family == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            **ends,
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **ends,
        )
    config._attn_implementation = attention
    with seeded(seed):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            # The usual initial weights are so small that every token looks alike.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    policy: PreTrainedModel = model.train()
    return policy


def tiny_batch(pairs: int = 3, seed: int = 0, weights: bool = True) -> ResponseBatch:
    """A batch of random pairs of various lengths.

    Args:
        pairs: Number of pairs ``B``.
        seed: Seed of tokens and lengths.
        weights: Whether token weights come with the data.

    Returns:
        Rows of the roles ``chosen`` and ``rejected``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    prompt_lengths = draw(2, 6, pairs).repeat(2)
    lengths = prompt_lengths + draw(3, 9, 2 * pairs)
    prompts = draw(3, VOCABULARY, pairs, 16).repeat(2, 1)
    responses = draw(3, VOCABULARY, 2 * pairs, 16)
    positions = torch.arange(16)
    input_ids = torch.where(positions < prompt_lengths[:, None], prompts, responses)
    input_ids.masked_fill_(positions == lengths[:, None] - 1, 2)
    input_ids.masked_fill_(positions >= lengths[:, None], 0)
    supplied = torch.rand(2 * pairs, 16, generator=generator) if weights else None
    batch = ResponseBatch(
        input_ids=input_ids,
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        roles=("chosen", "rejected"),
        index=torch.arange(pairs),
        counted=torch.ones(pairs, dtype=torch.bool),
        supplied_weights=supplied,
    )
    if supplied is not None:
        supplied.masked_fill_(~batch.response_mask, 0.0)
    return batch


def tiny_scores(pairs: int = 3, seed: int = 0) -> dict[str, TokenScores]:
    """Random per-token results of the roles ``chosen``, ``rejected`` and ``anchor``.

    Args:
        pairs: Number of pairs ``B``.
        seed: Seed of all values.

    Returns:
        Results whose ``policy_logps`` and ``kl`` take gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = tiny_batch(pairs, seed)
    masks = {role: batch.response_mask[batch.rows(role)] for role in batch.roles}
    masks["anchor"] = masks["chosen"].flip(0)

    def values(mask: Tensor) -> Tensor:
        return torch.rand(mask.shape, generator=generator).masked_fill(~mask, 0.0)

    return {
        role: TokenScores(
            mask=mask,
            policy_logps=(-3 * values(mask)).requires_grad_(),
            reference_logps=-3 * values(mask),
            kl=None if role == "anchor" else values(mask).requires_grad_(),
            weights=None if role == "anchor" else 2 * values(mask),
        )
        for role, mask in masks.items()
    }
