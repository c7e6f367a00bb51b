"""TI-DPO in the arrangement of the paper's authors, as a baseline: nothing is shared or cached.

Each step: an attribution pass of its own over each response with the logits of the whole vocabulary
at all positions, an anchor sampled by ``generate`` and padded to the longest length, and two passes
over each of the three responses, one of the policy and one of the reference. The mathematics is the
paper's, so its loss is that of ``PreferenceModule``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad
from transformers import AutoModelForCausalLM

from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.ours import RATE, sequential_loader
from benchmarks.workloads import Workload
from lit_tidpo import PreferenceModule
from lit_tidpo.policy import PolicyConfig
from lit_tidpo.structures import ResponseBatch

ALPHA, BETA, GAMMA, MIX, MARGIN, NEW_TOKENS = 0.5, 0.1, 0.1, 0.7, 1.0, 64


def train(
    folder: Path, load: Workload, contestant: Contestant, steps: int, tick: Callable[[Any], None]
) -> None:
    """Train for some steps; see :func:`benchmarks.ours.train`."""
    torch.manual_seed(0)
    policy: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    module = PreferenceModule(PolicyConfig(str(folder)), **CONTESTANTS["tidpo"].options)
    for _, batch in zip(range(steps), sequential_loader(folder, load, module), strict=False):
        width = 2 * load.longest if contestant.options["padded_anchors"] else None
        anchors = sample(policy, batch, width, contestant.options.get("use_cache", True))
        loss = tidpo_loss(policy, reference, batch, anchors)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        tick(loss.detach())


def tidpo_loss(policy: Any, reference: Any, batch: ResponseBatch, anchors: ResponseBatch) -> Tensor:
    """Loss of a batch (Eq. 14)."""
    chosen, rejected = batch.role("chosen"), batch.role("rejected")
    rows = {"chosen": chosen, "rejected": rejected, "anchor": anchors}
    ratios, divergences, weights = {}, {}, {}
    for role, row in rows.items():
        if role != "anchor":
            weights[role] = importance(policy, row)
        ratios[role], divergences[role] = compare(policy, reference, row)
    weighted = {role: (weights[role] * ratios[role]).sum(-1) for role in weights}
    shift = divergences["rejected"].sum(-1) - divergences["chosen"].sum(-1).detach()
    margin = weighted["chosen"] - weighted["rejected"] - ALPHA * shift
    distances = [
        distance((ratios["anchor"], anchors), (ratios[role], rows[role])) for role in weights
    ]
    triplet = (distances[0] - distances[1] + MARGIN).relu()
    return (-logsigmoid(BETA * margin) + GAMMA * triplet).mean()


def importance(policy: Any, row: ResponseBatch) -> Tensor:
    """Weights of mean 1 over the response (Eq. 5-8), by a forward and a backward pass."""
    embeddings = policy.get_input_embeddings()(row.input_ids)
    logits = policy(inputs_embeds=embeddings, attention_mask=row.attention_mask).logits
    last = logits[range(len(logits)), row.lengths - 1]
    (gradient,) = torch.autograd.grad(last.amax(-1).sum(), embeddings)
    weights = torch.zeros(row.input_ids.shape)
    for i, (start, end) in enumerate(zip(row.prompt_lengths, row.lengths, strict=True)):
        scores = gradient[i, start:end].abs().sum(-1)
        count = len(scores)
        position = torch.arange(count) - (count - 1) / 2
        prior = torch.exp(-((position / (count / 4)) ** 2) / 2)
        mixed = MIX * scores / scores.sum() + (1 - MIX) * prior / prior.sum()
        weights[i, start:end] = mixed * count
    return weights


def compare(policy: Any, reference: Any, row: ResponseBatch) -> tuple[Tensor, Tensor]:
    """Log-ratios and position-wise KL of the response tokens, from all logits, ``[B, T]``."""
    inputs = {"input_ids": row.input_ids, "attention_mask": row.attention_mask}
    log_p = policy(**inputs).logits.log_softmax(-1)
    with torch.no_grad():
        log_q = reference(**inputs).logits.log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)[:, :-1]
    labels = row.input_ids[:, 1:, None]
    ratios = (log_p - log_q)[:, :-1].gather(-1, labels).squeeze(-1)
    mask = row.response_mask[:, 1:]
    return tuple(pad(value * mask, (1, 0)) for value in (ratios, kl))  # type: ignore[return-value]


def distance(one: tuple[Tensor, ResponseBatch], other: tuple[Tensor, ResponseBatch]) -> Tensor:
    """Squared distance of log-ratios over the positions that both responses have, ``[B]``."""
    sums = []
    for i in range(len(one[0])):
        parts = [
            values[i, int(row.prompt_lengths[i]) : int(row.lengths[i])]
            for values, row in (one, other)
        ]
        shared = min(len(part) for part in parts)
        sums.append((parts[0][:shared] - parts[1][:shared]).square().sum())
    return torch.stack(sums)


def sample(
    policy: Any, batch: ResponseBatch, longest: int | None, use_cache: bool
) -> ResponseBatch:
    """Anchors, padded to a fixed length or to the longest of them."""
    chosen = batch.role("chosen")
    width = int(chosen.prompt_lengths.max())
    prompts = [ids[:n] for ids, n in zip(chosen.input_ids, chosen.prompt_lengths, strict=True)]
    left_padded = torch.stack([pad(ids, (width - len(ids), 0)) for ids in prompts])
    mask = torch.arange(width) >= width - chosen.prompt_lengths[:, None]
    generated = policy.generate(
        input_ids=left_padded,
        attention_mask=mask.long(),
        do_sample=True,
        temperature=0.8,
        top_k=50,
        top_p=0.95,
        max_new_tokens=NEW_TOKENS,
        use_cache=use_cache,
        pad_token_id=2,
    )
    ends = (generated[:, width:] == 1).long()
    lengths = chosen.prompt_lengths + (ends.cumsum(-1) - ends == 0).sum(-1)
    starts = width - chosen.prompt_lengths
    rows = [
        ids[start : start + length]
        for ids, start, length in zip(generated, starts, lengths, strict=True)
    ]
    longest = longest or max(len(row) for row in rows)
    return ResponseBatch(
        input_ids=torch.stack([pad(row, (0, longest - len(row))) for row in rows]),
        prompt_lengths=chosen.prompt_lengths,
        lengths=lengths,
        roles=("anchor",),
        index=batch.index,
        counted=batch.counted,
    )
