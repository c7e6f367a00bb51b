"""What is proven of a model on a few tokens before it is used.

Values that agree now need not agree later: what mixes tokens is small in a new model, and grows
with training. So gradients are looked at, too. That of one token's logits for another token's
embedding is exactly zero where nothing leads from one to the other, and only there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.packed_attention import PACKED_ATTENTION
from lit_tidpo.models.quantization import dense
from lit_tidpo.models.quirks.attention import attention_kernel, attention_maps
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import inner_model, input_layer, vocabulary_size
from lit_tidpo.models.sharding import is_sharded


@contextmanager
def proving(model: nn.Module) -> Iterator[None]:
    """Run a model with gradients, in eval mode and in its own precision.

    What is all zero meanwhile is not: a gate or a kernel that starts at zero hides what it will let
    through once it is trained.
    """
    zero = [p for p in model.parameters() if p.is_floating_point() and not dense(p).any()]
    with (
        evaluating(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(next(model.parameters()).device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        for each in zero:
            each.data.fill_(0.02)
        try:
            yield
        finally:
            for each in zero:
                each.data.zero_()
            _forget_graphs(model)


def _forget_graphs(model: nn.Module) -> None:
    """Cut the states that modules keep, as those of RecurrentGemma do, out of the proof's graph."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())


def sources(values: Tensor, embeddings: Tensor) -> Tensor:
    """Which tokens have an influence on any of the values, ``[N, T]`` bool."""
    (gradient,) = torch.autograd.grad(values.float().square().sum(), embeddings, retain_graph=True)
    return gradient.ne(0).any(-1)


def can_run(model: nn.Module) -> bool:
    """Whether a few tokens can be run here and now; other kernels run on some devices alone."""
    kernels = (None, "eager", "sdpa", PACKED_ATTENTION)
    return attention_kernel(model) in kernels and not is_sharded(model)


def check_causal(model: nn.Module) -> None:
    """Refuse a model in which a token sees those after it.

    Raises:
        InputError: If logits of a token change with a later token.
    """
    if not can_run(model):
        return
    size = vocabulary_size(model)
    ids = torch.arange(1, 5, device=next(model.parameters()).device).remainder(size).unsqueeze(0)
    with proving(model):
        logits, embeddings = _run(model, ids)
        if bool(sources(logits[:, :3], embeddings)[:, 3].any()):
            raise InputError(
                f"{type(model).__name__} lets tokens see those after them: expected a causal "
                "language model"
            )


def check_attentions(model: nn.Module) -> None:
    """Refuse a model that hands out no attention probabilities.

    Raises:
        InputError: If none of its layers has any.
    """
    if is_sharded(model):
        return
    name = type(inner_model(model)).__name__
    ids = torch.arange(1, 4, device=next(model.parameters()).device).unsqueeze(0)
    with evaluating(model), torch.no_grad():
        with explained(f"{name} cannot hand out attention probabilities"):
            output = model(input_ids=ids, output_attentions=True, use_cache=False)
        if not attention_maps(output, ids.shape[1]):
            raise InputError(
                f"attention importance needs attention probabilities, and no layer of {name} has "
                "any: choose another importance, such as gradient"
            )


def takes_left_padding(model: nn.Module) -> bool:
    """Whether a context behind padding goes on as it does alone, as generation has it."""
    device = next(model.parameters()).device
    whole = torch.arange(1, 8, device=device).mul(7919).remainder(vocabulary_size(model))
    short = whole[4:]
    ids = torch.stack([whole, torch.cat([torch.zeros_like(whole[:4]), short])])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask}
    if "position_ids" in inspect.signature(inner_model(model).forward).parameters:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with proving(model):
        logits, embeddings = _run(model, ids, **options)
        alone, _ = _run(model, short.unsqueeze(0))
        difference = (logits[1, -1] - alone[0, -1]).detach().abs().max()
        same = float(difference) <= rounding(model) * float(alone.detach().abs().max())
        return same and not bool(sources(logits[1, -1], embeddings)[1, :4].any())


def check_same_passes(
    model: nn.Module, plainly: Callable[[], AbstractContextManager[None]], what: str
) -> None:
    """Refuse kernels that give other log-probs or gradients than a model's own code.

    Gradients are taken twice of one graph, as importance and the loss do.

    Args:
        model: The model, with the kernels on.
        plainly: A context in which they are off.
        what: The setting that asks for them.

    Raises:
        InputError: If anything differs by more than rounding.
    """
    ids = torch.arange(1, 13, device=next(model.parameters()).device).reshape(2, 6)
    ids = ids.mul(7919).remainder(vocabulary_size(model))
    with proving(model), explained(f"{what} cannot be run"):
        found = _passes(model, ids)
        with plainly():
            expected = _passes(model, ids)
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    for name, value in expected.items():
        error = float((found[name] - value).norm() / value.norm())
        if not error <= (1e-3 if exact else 0.15):
            raise InputError(
                f"{what}: {name} of {type(model).__name__} is off by {error:.2g} of its norm on "
                "this device: leave it out"
            )


def _passes(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Log-probs, and gradients for the embeddings and for weights of norms, from two runs."""
    logits, embeddings = _run(model, ids)
    logps = logits.log_softmax(-1)
    norms = [each for each in model.parameters() if each.requires_grad and each.dim() == 1]
    values = {"log-probs": logps.detach()}
    for run in ("first", "second"):
        of_embeddings, *of_norms = torch.autograd.grad(
            logps.square().mean(), [embeddings, *norms], retain_graph=True, allow_unused=True
        )
        values[f"the {run} gradient of the embeddings"] = of_embeddings.float()
        known = [each.flatten().float() for each in of_norms if each is not None]
        if known:
            values[f"the {run} gradient of the norms"] = torch.cat(known)
    return values


def rounding(model: nn.Module) -> float:
    """By how much logits may differ for their precision alone, as a share of the largest."""
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    return 1e-4 if exact else 3e-2


def _run(model: nn.Module, ids: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and input embeddings, ``[N, T, V]`` and ``[N, T, H]``."""
    embeddings: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        embeddings.append(output if output.requires_grad else output.requires_grad_())
        return output.clone()  # some models change their embeddings in place, such as CTRL

    handle = input_layer(model).register_forward_hook(keep)
    try:
        logits = model(input_ids=ids, use_cache=False, **options).logits.float()
    finally:
        handle.remove()
    if not embeddings or embeddings[0].shape[:2] != ids.shape or logits.shape[:2] != ids.shape:
        raise InputError(
            f"{type(inner_model(model)).__name__} does not make an embedding and logits of each "
            "token, row by row: expected a causal language model"
        )
    return logits, embeddings[0]
