"""Models and batches that cost nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_tidpo.data.collation import GroupCollator
from lit_tidpo.losses.base import LossContext
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch, Results

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


def tiny_groups(most: int = 4, seed: int = 0) -> ResponseBatch:
    """A batch of random groups: prompts with one to ``most`` responses, the first prompt with all.

    Args:
        most: Responses of the first prompt; each next prompt has one less.
        seed: Seed of tokens and lengths.

    Returns:
        Rows of the roles ``response_1`` and so on, with rewards.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    groups = [
        {
            "prompt_ids": draw(3 + prompt),
            "responses": [
                {"ids": [*draw(2 + place + prompt), 2], "reward": float(-place)}
                for place in range(most - prompt)
            ],
            "index": prompt,
        }
        for prompt in range(most)
    ]
    return GroupCollator()(groups)


def tiny_context(
    batch: ResponseBatch | None = None,
    seed: int = 0,
    models: Iterable[str] = ("reference",),
    step: int = 0,
    share: float | None = 0.0,
) -> LossContext:
    """Random per-token results of a batch, and of anchors for its prompts.

    Args:
        batch: The rows; None takes three random pairs.
        seed: Seed of all values.
        models: Names of the models besides the policy.
        step: Optimizer step.
        share: Share of the run that is done.

    Returns:
        Everything that losses can ask for; the policy's and ``kl`` take gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = tiny_batch(3, seed) if batch is None else batch
    anchors = dataclasses.replace(
        batch.role(batch.roles[0]), roles=("anchor",), rewards=None, supplied_weights=None
    )

    def values(mask: Tensor) -> Tensor:
        return torch.rand(mask.shape, generator=generator).masked_fill(~mask, 0.0)

    def log_probs(rows: ResponseBatch) -> dict[str, Any]:
        mask = rows.response_mask
        found: dict[str, Any] = {"policy.logps": (-3 * values(mask)).requires_grad_()}
        return found | {f"{model}.logps": -3 * values(mask) for model in models}

    found = log_probs(batch)
    mask = batch.response_mask
    for model in ("policy", *models):
        found[f"{model}.entropy"] = values(mask)
        found[f"{model}.label_logits"] = values(mask)
        found[f"{model}.log_collision"] = -2 * values(mask)
        found[f"{model}.hidden"] = torch.rand((*mask.shape, 8), generator=generator)
    found |= {f"{model}.kl": values(mask).requires_grad_() for model in models}
    found |= {"weights": 2 * values(mask), "scores": values(mask), "behaviour_logps": -values(mask)}
    found["policy.router_loss"] = torch.rand(1, generator=generator).repeat(len(mask))
    found["policy.router_loss"].requires_grad_()
    # The earlier the role, the better.
    found["rewards"] = torch.rand(len(mask), generator=generator) - torch.arange(len(mask))
    labels = torch.rand(len(mask), generator=generator) < 0.5
    found["labels"] = labels if batch.labels is None else batch.labels
    others = Results(anchors, log_probs(anchors))
    rows = batch.mismatched()
    mismatched = Results(rows, {k: v.detach() for k, v in log_probs(rows).items()})
    return LossContext(Results(batch, found), others, step, share, mismatched)
