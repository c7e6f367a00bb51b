"""TI-DPO in the arrangement of the paper's authors, as a baseline: nothing is shared or cached.

Each step: a pass of policy and reference over chosen and rejected rows with the logits of the whole
vocabulary at all positions, an attribution pass of its own over them, an anchor sampled by
``generate``, padded to the longest length and run through both models, and for the triplet loss the
softmax of all logits once more. The mathematics is the paper's, so its loss is that of
``PreferenceModule``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad
from transformers import AutoModelForCausalLM

from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.ours import sequential_loader
from benchmarks.workloads import Workload
from lit_tidpo import PreferenceModule
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.structures import ResponseBatch

ALPHA, BETA, GAMMA, MIX, MARGIN, NEW_TOKENS = 0.5, 0.1, 0.1, 0.7, 1.0, 64


def train(
    folder: Path, load: Workload, contestant: Contestant, steps: int, tick: Callable[[Any], None]
) -> None:
    """Train for some steps; see :func:`benchmarks.ours.train`."""
    torch.manual_seed(0)
    policy: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=load.rate, weight_decay=0.0, fused=True)
    module = PreferenceModule(PolicyConfig(str(folder)), **CONTESTANTS["tidpo"].options)
    for _, batch in zip(range(steps), sequential_loader(folder, load, module), strict=False):
        width = 2 * load.longest if contestant.options["padded_anchors"] else None
        parts = pairs(batch) if contestant.options.get("pair_by_pair") else [batch]
        optimizer.zero_grad()
        losses = []
        for part in parts:
            anchors = sample(policy, part, width, contestant.options.get("use_cache", True))
            loss = tidpo_loss(policy, reference, part, anchors) / len(parts)
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        tick(torch.stack(losses).sum())


def pairs(batch: ResponseBatch) -> list[ResponseBatch]:
    """Each pair of a batch as one of its own, with all its roles."""
    parts = []
    for pair in range(batch.size):
        rows = list(range(pair, len(batch.lengths), batch.size))
        lengths = batch.lengths[rows]
        part = dataclasses.replace(
            batch,
            input_ids=batch.input_ids[rows, : int(lengths.max())],
            prompt_lengths=batch.prompt_lengths[rows],
            lengths=lengths,
            index=batch.index[[pair]],
            counted=batch.counted[[pair]],
        )
        parts.append(part)
    return parts


def tidpo_loss(policy: Any, reference: Any, batch: ResponseBatch, anchors: ResponseBatch) -> Tensor:
    """Loss of a batch (Eq. 14)."""
    logits, others = run(policy, reference, batch)
    ratios, kl = compare(logits, others, batch)
    weighted = (importance(policy, batch) * ratios).sum(-1)
    chosen, rejected = batch.rows("chosen"), batch.rows("rejected")
    shift = kl[rejected].sum(-1) - kl[chosen].sum(-1).detach()
    margin = weighted[chosen] - weighted[rejected] - ALPHA * shift
    of_anchors = log_ratios(*run(policy, reference, anchors), anchors)
    of_pairs = log_ratios(logits, others, batch)
    distances = [
        distance((of_anchors, anchors), (of_pairs[batch.rows(role)], batch.role(role)))
        for role in ("chosen", "rejected")
    ]
    triplet = (distances[0] - distances[1] + MARGIN).relu()
    return (-logsigmoid(BETA * margin) + GAMMA * triplet).mean()


def run(policy: Any, reference: Any, rows: ResponseBatch) -> tuple[Tensor, Tensor]:
    """Logits of both models at all positions, ``[N, T, V]`` each."""
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    with torch.no_grad():
        others = reference(**inputs).logits
    return policy(**inputs).logits, others


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


def compare(logits: Tensor, others: Tensor, rows: ResponseBatch) -> tuple[Tensor, Tensor]:
    """Log-ratios and position-wise KL of the response tokens, ``[N, T]``."""
    log_p, q = logits.log_softmax(-1), others.softmax(-1)
    log_q = q.log()
    kl = (q * (log_q - log_p)).sum(-1)[:, :-1]
    return of_labels(log_p - log_q, rows), pad(kl, (1, 0)) * rows.response_mask


def log_ratios(logits: Tensor, others: Tensor, rows: ResponseBatch) -> Tensor:
    """Log-ratios of the response tokens, ``[N, T]``."""
    return of_labels(logits.log_softmax(-1), rows) - of_labels(others.log_softmax(-1), rows)


def of_labels(values: Tensor, rows: ResponseBatch) -> Tensor:
    """What stands at each response token's entry one position before it, ``[N, T]``."""
    chosen = values[:, :-1].gather(-1, rows.input_ids[:, 1:, None]).squeeze(-1)
    return pad(chosen, (1, 0)) * rows.response_mask


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
