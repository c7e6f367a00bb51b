"""Checks that a plugin keeps its contract; call them from the plugin's own tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_tidpo.contracts import ImportanceEstimator, LossComponent, check_needs
from lit_tidpo.models.forward import run_models
from lit_tidpo.models.reference import Reference
from lit_tidpo.plugins.hparams import plain
from lit_tidpo.structures import ResponseBatch, TokenScores
from lit_tidpo.testing.tiny import tiny_batch, tiny_policy, tiny_scores


def check_importance_estimator(estimator: ImportanceEstimator) -> None:
    """Check an importance estimator on a tiny model.

    Its scores are finite, not negative and of the right shape; each row depends on itself alone;
    padding does not count; nothing of the policy, the reference or any generator is touched; its
    arguments can be stored.

    Args:
        estimator: An instance of the plugin's class.

    Raises:
        AssertionError: Naming what does not hold.
    """
    name = type(estimator).__name__
    check_needs(name, estimator.needs)
    plain(estimator)
    policy = tiny_policy(attention="eager")
    reference = Reference(tiny_policy(seed=1, attention="eager"))
    batch = tiny_batch()

    def scores(rows: ResponseBatch) -> Tensor:
        forward = run_models(policy, reference, rows, estimator.needs)
        return _untouched(name, policy, reference, lambda: estimator.scores(forward)).detach()

    whole = scores(batch)
    assert whole.shape == batch.input_ids.shape, (
        f"{name}: shape {tuple(whole.shape)}, expected {tuple(batch.input_ids.shape)}"
    )
    mask = batch.response_mask
    assert bool(whole[mask].isfinite().all()), f"{name}: scores are NaN or infinite"
    assert bool((whole[mask] >= 0).all()), f"{name}: scores are negative"
    for row, length in enumerate(batch.lengths.tolist()):
        _assert_close(
            f"{name}: scores of a row depend on other rows or on padding",
            scores(_single_row(batch, row))[0, mask[row, :length]],
            whole[row, :length][mask[row, :length]],
        )


def _single_row(batch: ResponseBatch, row: int) -> ResponseBatch:
    """One row as a batch of one response, without padding."""
    length = int(batch.lengths[row])
    weights = batch.supplied_weights
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids[row : row + 1, :length],
        prompt_lengths=batch.prompt_lengths[row : row + 1],
        lengths=batch.lengths[row : row + 1],
        roles=("chosen",),
        index=batch.index[:1],
        counted=batch.counted[:1],
        supplied_weights=None if weights is None else weights[row : row + 1, :length],
    )


def _untouched(
    name: str, policy: nn.Module, reference: Reference, compute: Callable[[], Tensor]
) -> Tensor:
    """Compute and assert that models and generators are as before."""
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)  # as in the middle of accumulation
    before, generator = _state(policy, reference), torch.get_rng_state()
    result = compute()
    after = _state(policy, reference)
    changed = [key for key in before if not _same(before[key], after.get(key))]
    assert not changed, f"{name}: changes {changed[:5]}"
    assert torch.equal(generator, torch.get_rng_state()), f"{name}: draws from the global generator"
    return result


def _state(policy: nn.Module, reference: Reference) -> dict[str, Any]:
    models = {"policy": policy, "reference": reference.model or nn.Module()}
    state: dict[str, Any] = {}
    for label, model in models.items():
        for key, module in model.named_modules():
            state[f"{label}.{key}.training"] = module.training
            state[f"{label}.{key}.hooks"] = (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
            )
        for key, parameter in model.named_parameters():
            state[f"{label}.{key}"] = parameter.detach().clone()
            state[f"{label}.{key}.grad"] = (
                None if parameter.grad is None else parameter.grad.clone()
            )
            state[f"{label}.{key}.requires_grad"] = parameter.requires_grad
        state |= {f"{label}.{key}": value.clone() for key, value in model.named_buffers()}
        config = getattr(model, "config", None)
        state[f"{label}.config"] = None if config is None else config.to_dict()
    return state


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return bool(first == second)


def _assert_close(message: str, first: Tensor, second: Tensor) -> None:
    difference = (first - second).abs().max().item()
    scale = second.abs().max().clamp(min=1e-12).item()
    assert difference <= 1e-4 * scale, f"{message} (by up to {difference:.3g})"


def check_loss_component(component: LossComponent, beta: float = 0.1) -> None:
    """Check a loss component on random per-token results.

    It needs no more than it declares; it gives one finite loss for each pair; each pair counts
    alone; values off the response do not count; at least one policy log-prob gets a gradient; its
    inputs stay as they are; its arguments can be stored.

    Args:
        component: An instance of the plugin's class.
        beta: Inverse temperature to call it with.

    Raises:
        AssertionError: Naming what does not hold.
    """
    name = type(component).__name__
    check_needs(name, component.needs)
    plain(component)
    scores = _declared(tiny_scores(), component.needs)
    before = {role: _map(tokens, torch.clone) for role, tokens in scores.items()}
    pairs = len(scores["chosen"].mask)
    loss = component.loss(scores, beta)
    for role, tokens in scores.items():
        changed = [
            key for key, value in vars(before[role]).items() if not _same(value, vars(tokens)[key])
        ]
        assert not changed, f"{name}: changes {changed} of {role!r}"
    assert loss.shape == (pairs,), f"{name}: shape {tuple(loss.shape)}, expected ({pairs},)"
    assert bool(loss.isfinite().all()), f"{name}: loss is NaN or infinite"
    leaves = [tokens.policy_logps for tokens in scores.values()]
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]
    assert used, f"{name}: no policy log-prob gets a gradient"
    assert all(bool(gradient.isfinite().all()) for gradient in used), f"{name}: gradient not finite"
    first = component.loss({role: _pair(tokens, 0) for role, tokens in scores.items()}, beta)
    _assert_close(f"{name}: the loss of a pair depends on other pairs", first, loss[:1])
    polluted = component.loss(_polluted(scores), beta)
    _assert_close(f"{name}: values off the response count", polluted.nan_to_num(1e9), loss)


def _declared(scores: dict[str, TokenScores], needs: frozenset[str]) -> dict[str, TokenScores]:
    """The results that a component with these needs would be given."""
    fields = {"reference.logps": "reference_logps", "kl": "kl", "weights": "weights"}
    missing: dict[str, Any] = {field: None for need, field in fields.items() if need not in needs}
    roles = [role for role in scores if role != "anchor" or "anchor" in needs]
    return {role: dataclasses.replace(scores[role], **missing) for role in roles}


def _map(tokens: TokenScores, change: Callable[[Tensor], Tensor]) -> TokenScores:
    return dataclasses.replace(
        tokens,
        **{
            field.name: change(value)
            for field in dataclasses.fields(tokens)
            if isinstance(value := getattr(tokens, field.name), Tensor) and field.name != "mask"
        },
    )


def _pair(tokens: TokenScores, pair: int) -> TokenScores:
    cut = _map(tokens, lambda value: value[pair : pair + 1])
    return dataclasses.replace(cut, mask=tokens.mask[pair : pair + 1])


def _polluted(scores: Mapping[str, TokenScores]) -> dict[str, TokenScores]:
    """The same results with NaN wherever there is no response token."""
    return {
        role: _map(tokens, lambda value, mask=tokens.mask: value.masked_fill(~mask, torch.nan))  # type: ignore[misc]
        for role, tokens in scores.items()
    }
