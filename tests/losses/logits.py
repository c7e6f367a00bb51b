"""Given logits, as per-token results and as TRL's losses."""

import dataclasses

import torch

from lit_tidpo.functional.log_probs import kl_divergence, token_log_probs
from lit_tidpo.losses.base import LossContext
from lit_tidpo.structures import Results

VOCABULARY = 48
SEEDS = range(20)


def draw_logits(batch, seed, dtype):
    """Logits of policy and reference, [2, N, T, V]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, *batch.input_ids.shape, VOCABULARY)
    return 2 * torch.randn(shape, generator=generator, dtype=dtype)


def context_of(batch, policy, reference, weights):
    """Per-token results of given logits, [N, T, V] each."""
    mask = batch.response_mask
    logps = [token_log_probs(logits, batch.input_ids, mask) for logits in (policy, reference)]
    # The distribution that predicts a token stands one position before it.
    kl = kl_divergence(reference, policy).roll(1, dims=-1).masked_fill(~mask, 0.0)
    values = {
        "policy.logps": logps[0],
        "reference.logps": logps[1],
        "reference.kl": kl,
        "policy.log_collision": log_collision(policy, mask),
        "weights": weights,
    }
    return LossContext(Results(batch, values))


def log_collision(logits, mask):
    """``log sum p ** 2`` of the distribution that predicts each token, [N, T]."""
    return logits.softmax(-1).square().sum(-1).log().roll(1, dims=-1).masked_fill(~mask, 0.0)


def trl_losses(trl_dpo, batch, policy, reference, beta=0.1, **settings):
    """TRL's loss of each pair."""
    losses = []
    for pair in range(batch.size):
        rows = [pair, pair + batch.size]
        alone = dataclasses.replace(
            batch,
            input_ids=batch.input_ids[rows],
            prompt_lengths=batch.prompt_lengths[rows],
            lengths=batch.lengths[rows],
            index=batch.index[pair : pair + 1],
            counted=batch.counted[pair : pair + 1],
            supplied_weights=None,
        )
        found = trl_dpo.on_logits(policy[rows], reference[rows], alone, beta=beta, **settings)
        losses.append(found[0].item())
    assert max(losses) - min(losses) > 0.01  # pairs that tell formulas apart
    return losses
