"""Optimizers whose small steps are not lost in bfloat16 weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_tidpo.errors import InputError


def stochastically_rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in bfloat16 whose expectation are the given ones (arXiv 1502.02551, Eq. 1).

    A value between two neighbours becomes the upper one with the share of their distance that it
    is above the lower one. bfloat16 is the upper half of fp32, so a random lower half is added and
    cut off.

    Args:
        values: fp32.
        generator: Draws, on their device.

    Example:
        >>> rounded = stochastically_rounded(torch.full((1000,), 1 + 2**-9), torch.Generator())
        >>> sorted(set(rounded.tolist()))
        [1.0, 1.0078125]
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(
        2**16, bits.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    return (bits + noise).bitwise_and_(-(2**16)).view(torch.float32).to(torch.bfloat16)


def round_stochastically(optimizer: Optimizer, seed: Callable[[], int]) -> None:
    """Let an optimizer step in fp32 and round its bfloat16 weights stochastically.

    Its state is fp32, as it is made of the fp32 weights that are there while it steps.

    Args:
        optimizer: Changed in place.
        seed: Gives the seed of a step, the same on all ranks.

    Raises:
        InputError: If no weight is bfloat16.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    coarse = [each for each in parameters if each.dtype == torch.bfloat16]
    if not coarse:
        raise InputError(
            "policy.stochastic_rounding has no effect: no weights that are trained are bfloat16; "
            "leave it out, or set policy.dtype=bfloat16"
        )

    wide: dict[Tensor, nn.Parameter] = {}

    def exchange(others: Mapping[Tensor, Tensor]) -> None:
        for group in optimizer.param_groups:
            group["params"] = [others.get(each, each) for each in group["params"]]
        for old, new in others.items():
            if old in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(old)

    # Other tensors step for the weights, whose own storage stays: to exchange that for one of
    # another type would take them off the gradient's way, and DDP's hooks with them.
    def widen(*_: Any) -> None:
        for each in coarse:
            wide[each] = nn.Parameter(each.detach().float())
            gradient, each.grad = each.grad, None
            wide[each].grad = None if gradient is None else gradient.float()
        exchange(wide)

    def narrow(*_: Any) -> None:
        generator = torch.Generator(coarse[0].device).manual_seed(seed())
        for each, value in wide.items():
            with torch.no_grad():
                each.copy_(stochastically_rounded(value.detach(), generator))
            each.grad = None if value.grad is None else value.grad.bfloat16()
        exchange({value: each for each, value in wide.items()})
        wide.clear()

    def before_step(_: Optimizer, arguments: Any, options: Any) -> tuple[Any, Any]:
        own, *given = arguments
        closure = given[0] if given else options.get("closure")
        loss = None
        if closure is not None:  # forward and backward pass, in bfloat16
            with torch.enable_grad():
                loss = closure()
        widen()
        return (own,), {} if closure is None else {"closure": lambda: loss}

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(narrow)
    # Loading casts the state to the type of the weights; they are exact in both types.
    optimizer.register_load_state_dict_pre_hook(widen)
    optimizer.register_load_state_dict_post_hook(narrow)
