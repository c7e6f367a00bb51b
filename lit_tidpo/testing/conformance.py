"""Checks that a plugin keeps its contract; call them from the plugin's own tests."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_tidpo.importance.base import ImportanceEstimator, check_estimator, checked_scores, walk
from lit_tidpo.losses.base import LossComponent, LossContext, check_loss, checked_loss
from lit_tidpo.models.models import Models
from lit_tidpo.models.needs import FROM_THE_DATA, models_of
from lit_tidpo.models.reference import FrozenModel, OtherModel
from lit_tidpo.plugins.hparams import as_plain_data
from lit_tidpo.structures import ResponseBatch, Results
from lit_tidpo.testing.tiny import tiny_batch, tiny_context, tiny_groups, tiny_policy


def check_importance_estimator(estimator: ImportanceEstimator) -> None:
    """Check an importance estimator on tiny models.

    Its scores are finite, of the right shape and not negative, unless it is ``signed``; each row
    depends on itself alone, or on the responses of its own prompt if it ``looks_at`` the group;
    padding does not count; nothing of the models or any generator is touched; if it is ``learned``,
    its parameters get a gradient; its arguments can be stored.

    Args:
        estimator: An instance of the plugin's class.

    Raises:
        AssertionError: Naming what does not hold.
        InputError: What a run would refuse, too.
    """
    name = _name(estimator)
    check_estimator(estimator)
    as_plain_data(estimator)
    policy = tiny_policy(attention="eager")
    others: dict[str, OtherModel] = {
        model: FrozenModel(tiny_policy(seed=seed, attention="eager"))
        for seed, model in enumerate(_others(estimator.needs), start=1)
    }
    models = Models(policy, others)
    batch = tiny_batch()
    for need in estimator.needs & set(FROM_THE_DATA):
        setattr(batch, need, torch.rand(batch.lengths.shape if need == "rewards" else (6, 16)))

    def scores(rows: ResponseBatch) -> Tensor:
        (results,) = models.run([(rows, estimator.needs - set(FROM_THE_DATA))])
        results |= {need: getattr(rows, need) for need in estimator.needs & set(FROM_THE_DATA)}
        return _untouched(name, models, lambda: checked_scores(estimator, results))

    whole = scores(batch)
    _check_learning(estimator, whole)
    whole = whole.detach()
    mask = batch.response_mask
    for prompt in range(batch.size):
        rows = [[place * batch.size + prompt] for place in range(len(batch.roles))]
        if estimator.looks_at == "group":
            rows = [[row for each in rows for row in each]]
        for chosen in rows:
            width = int(batch.lengths[chosen].max())
            alone = scores(_alone(batch, prompt, chosen, width)).detach()
            for place, row in enumerate(chosen):
                own = mask[row, : alone.shape[1]]
                _assert_close(
                    f"{name}: scores of a row depend on other rows or on padding",
                    alone[place][own],
                    whole[row, : alone.shape[1]][own],
                )


def _check_learning(estimator: ImportanceEstimator, scores: Tensor) -> None:
    for part in walk(estimator):
        if not (part.learned and isinstance(part, nn.Module)):
            continue
        trained = [value for value in part.parameters() if value.requires_grad]
        found = torch.autograd.grad(scores.sum(), trained, allow_unused=True, retain_graph=True)
        assert any(gradient is not None for gradient in found), (
            f"{type(part).__name__}: learned, but no parameter gets a gradient of its scores"
        )


def _alone(batch: ResponseBatch, prompt: int, rows: list[int], width: int) -> ResponseBatch:
    """Some rows of one prompt as a batch of their own, so wide."""
    places = {role: batch.rows(role) for role in batch.roles}
    optional = {
        name: value[rows] if value.dim() == 1 else value[rows, :width]
        for name in ("context", "supplied_weights", "behaviour_logps", "rewards", "desirable")
        if (value := getattr(batch, name)) is not None
    }
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids[rows, :width],
        prompt_lengths=batch.prompt_lengths[rows],
        lengths=batch.lengths[rows],
        roles=tuple(
            role
            for role, held in places.items()
            if any(held.start <= row < held.stop for row in rows)
        ),
        index=batch.index[prompt : prompt + 1],
        counted=batch.counted[prompt : prompt + 1],
        holders=None,
        **optional,
    )


def _untouched(name: str, models: Models, compute: Callable[[], Tensor]) -> Tensor:
    """Compute and assert that models and generators are as before."""
    for parameter in models.policy.parameters():
        parameter.grad = torch.ones_like(parameter)  # as in the middle of accumulation
    before, generator = _state(models), torch.get_rng_state()
    result = compute()
    after = _state(models)
    changed = [key for key in before if not _same(before[key], after.get(key))]
    assert not changed, f"{name}: changes {changed[:5]}"
    assert torch.equal(generator, torch.get_rng_state()), f"{name}: draws from the global generator"
    return result


def _state(models: Models) -> dict[str, Any]:
    state: dict[str, Any] = {}
    named = {name: other.model for name, other in models.others.items()}
    for label, model in {"policy": models.policy, **named}.items():
        assert model is not None
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
        config: Any = getattr(model, "config", None)
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


def check_loss_component(component: LossComponent) -> None:
    """Check a loss on random per-token results.

    It needs no more than it declares; it gives one finite loss for each prompt, or of the unit
    ``batch`` one for all; each prompt counts alone, unless the unit is ``batch``; of the unit
    ``group`` it takes ragged groups; values off the response do not count; at least one policy
    log-prob gets a gradient; its inputs stay as they are; it names the quantities that it logs; its
    arguments can be stored. One that is an ``nn.Module`` is checked as in evaluation.

    Args:
        component: An instance of the plugin's class.

    Raises:
        AssertionError: Naming what does not hold.
        InputError: What a run would refuse, too.
    """
    name = _name(component)
    check_loss(name, component)
    as_plain_data(component)
    component = copy.deepcopy(component)
    if isinstance(component, nn.Module):
        component.eval()
    batch = tiny_groups() if component.unit == "group" else tiny_batch()
    context = _declared(tiny_context(batch, models=_others(component.needs)), component.needs)
    before = {role: _map(results, torch.clone) for role, results in context.items()}
    loss = _loss(component, context)
    for role, results in context.items():
        changed = [key for key, value in before[role].items() if not _same(value, results[key])]
        assert not changed, f"{name}: changes {changed} of {role!r}"
    assert bool(loss.isfinite().all()), f"{name}: loss is NaN or infinite"
    own = [context.responses.get(need) for need in ("policy.logps", "policy.router_loss")]
    leaves = [value for value in own if value is not None]
    leaves += [results["policy.logps"] for role, results in context.items() if role == "anchor"]
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]
    assert used, f"{name}: no value of the policy gets a gradient"
    assert all(bool(gradient.isfinite().all()) for gradient in used), f"{name}: gradient not finite"
    if component.unit != "batch":
        for prompt in range(batch.size):
            alone = _loss(component, _of_prompt(context, prompt))
            message = f"{name}: the loss of a prompt depends on other prompts"
            _assert_close(message, alone, loss[prompt : prompt + 1])
    polluted = _loss(component, _polluted(context))
    _assert_close(f"{name}: values off the response count", polluted.nan_to_num(1e9), loss)


def _name(component: object) -> str:
    assert not isinstance(component, type), (
        f"{component.__name__} is a class: expected an instance, {component.__name__}(...)"
    )
    return type(component).__name__


def _others(needs: frozenset[str]) -> list[str]:
    return sorted((models_of(needs) | {"reference"}) - {"policy"})


def _loss(component: LossComponent, context: LossContext) -> Tensor:
    return checked_loss(type(component).__name__, component, context).values


def _declared(context: LossContext, needs: frozenset[str]) -> LossContext:
    """What a loss with these needs would be given."""
    given = {"policy.logps", *needs, *({"scores"} if "weights" in needs else ())}
    responses = Results(
        context.responses.batch,
        {need: value for need, value in context.responses.items() if need in given},
    )
    anchors = None
    if "anchor" in needs:
        log_ratios = {"policy.logps", *(needs & {"reference.logps"})}
        found = {need: value for need, value in context["anchor"].items() if need in log_ratios}
        anchors = Results(context["anchor"].batch, found)
    others = context.mismatched if "mismatched" in needs else None
    return LossContext(responses, anchors, context.step, context.share, others)


def _map(results: Results, change: Callable[[Tensor], Tensor]) -> Results:
    return Results(results.batch, {need: change(value) for need, value in results.items()})


def _changed(context: LossContext, change: Callable[[Results], Results]) -> LossContext:
    anchors = change(context["anchor"]) if "anchor" in context else None
    others = None if context.mismatched is None else change(context.mismatched)
    return LossContext(change(context.responses), anchors, context.step, context.share, others)


def _of_prompt(context: LossContext, prompt: int) -> LossContext:
    """The results of one prompt alone."""

    def cut(results: Results) -> Results:
        batch = results.batch
        rows = [
            row
            for row, owner in enumerate(batch.of_rows(torch.arange(batch.size)).tolist())
            if owner == prompt
        ]
        alone = _alone(batch, prompt, rows, batch.input_ids.shape[1])
        return Results(alone, {need: value[rows] for need, value in results.items()})

    return _changed(context, cut)


def _polluted(context: LossContext) -> LossContext:
    """The same results with NaN wherever there is no response token."""

    def pollute(results: Results) -> Results:
        values: Mapping[str, Any] = {
            need: value.masked_fill(~results.mask, torch.nan)
            if value.shape == results.mask.shape
            else value
            for need, value in results.items()
        }
        return Results(results.batch, values)

    return _changed(context, pollute)
