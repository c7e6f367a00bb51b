"""Kernels of Liger for a model's norms and positions, on GPUs.

Importance runs the backward pass of the training forward twice. So a kernel must leave what that
pass reads as it is: Liger's RMSNorm does if it does not write over the gradient that it is given
(``in_place=False``), and its RoPE, which does write, keeps nothing but the angles, while every
backward pass hands it a gradient of its own. Its SwiGLU, GeGLU and fused losses do not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.policy import LigerKernel
from lit_tidpo.models.proofs import check_same_passes
from lit_tidpo.models.quirks.parts import inner_model

_LIBRARY = "liger_kernel."
_UNPROVEN = "unproven_liger_kernels"
"""Attribute of a model that holds them, copied with it."""


def use_liger(model: Any, kernels: Sequence[LigerKernel]) -> None:
    """Let a model compute its norms and positions by Liger's kernels where it is on a GPU.

    Liger's own code for the model's family says where they belong, and is held to the one model:
    what it exchanges in the modules of transformers, for all models to come, is put back. On a CPU
    the model's own code runs. :func:`prove_liger` is to be called before the first pass on a GPU.

    Args:
        model: A model of transformers, without adapters; changed in place.
        kernels: Which kernels.

    Raises:
        InputError: If Liger is not there, or has no such kernel for this family.
    """
    apply = _applier(model, kernels)
    flags = [name for name, each in inspect.signature(apply).parameters.items() if name != "model"]
    with (
        explained(f"policy.liger={list(kernels)} cannot be applied"),
        _restored_modules() as exchanged,
    ):
        apply(model=model, **{flag: flag in kernels for flag in flags})
    layers = {"rms_norm": _switch_norms(model), "rope": _switch_rope(model, exchanged)}
    for kernel in kernels:
        if not layers[kernel]:
            raise InputError(
                f"policy.liger: Liger's {kernel} is used by no layer of {type(model).__name__}: "
                "leave it out"
            )
    setattr(model, _UNPROVEN, list(kernels))


def _applier(model: Any, kernels: Sequence[LigerKernel]) -> Callable[..., None]:
    """Liger's function for a family of models."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise InputError(
            f"policy.liger={list(kernels)} needs liger-kernel ({error}): pip install "
            "'lit-tidpo[liger]'"
        ) from error
    family = model.config.model_type
    apply: Callable[..., None] | None = MODEL_TYPE_TO_APPLY_LIGER_FN.get(family)
    known = set() if apply is None else inspect.signature(apply).parameters.keys()
    lacking = sorted(set(kernels) - known)
    if apply is None or lacking:
        raise InputError(
            f"policy.liger={list(kernels)}: Liger has no {' and no '.join(lacking)} for models of "
            f"type {family!r}: leave it out"
        )
    return apply


@contextmanager
def _restored_modules() -> Iterator[dict[str, dict[str, Any]]]:
    """Put back what is exchanged in modules of transformers meanwhile.

    Yields:
        By module what was put in the place of functions, once it is over.
    """
    before = {
        name: dict(vars(module))
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.") and module is not None
    }
    exchanged: dict[str, dict[str, Any]] = {}
    try:
        yield exchanged
    finally:
        for name, values in before.items():
            now = vars(sys.modules[name])
            changed = {key for key, value in values.items() if now[key] is not value}
            exchanged[name] = {key: now[key] for key in changed if callable(now[key])}
            now.update({key: values[key] for key in changed})


class _Switch:
    """Whether kernels run where they can."""

    on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run models' own code meanwhile."""
        self.on = False
        try:
            yield
        finally:
            self.on = True


_switch = _Switch()


def on_gpu(device: torch.device) -> bool:
    """Whether the kernels can run on a device."""
    return device.type == "cuda"


def _switched(
    own: Callable[..., Any], kernel: Callable[..., Any], place: int
) -> Callable[..., Any]:
    """A kernel in the place of a model's own function, by where an argument lies."""

    def either(*arguments: Any, **named: Any) -> Any:  # whatever the model's code calls it with
        runs = _switch.on and on_gpu(arguments[place].device)
        return (kernel if runs else own)(*arguments, **named)

    return either


def _switch_norms(model: nn.Module) -> int:
    """Let norms that Liger has bound its kernel to choose; gives their number."""
    count = 0
    for module in model.modules():
        bound = getattr(vars(module).get("forward"), "__func__", None)
        if bound is None or not bound.__module__.startswith(_LIBRARY):
            continue
        module.in_place = False  # type: ignore[assignment] # others may need the gradient
        module.forward = MethodType(_switched(type(module).forward, bound, 1), module)
        count += 1
    return count


def _switch_rope(model: nn.Module, exchanged: dict[str, dict[str, Any]]) -> int:
    """Let layers see Liger's functions in the place of their module's; gives their number."""
    count = 0
    for module in model.modules():
        forward = type(module).forward
        if forward.__globals__["__name__"] == "transformers.utils.deprecation":
            # It takes arguments by their old names, too, which no layer of transformers uses.
            forward = inspect.unwrap(forward)
        own, names = forward.__globals__, forward.__code__.co_names
        seen = {
            name: _switched(own[name], kernel, 0)
            for name, kernel in exchanged.get(own["__name__"], {}).items()
            if name in names and not isinstance(kernel, type)
        }
        if seen:
            copied = FunctionType(forward.__code__, {**own, **seen}, argdefs=forward.__defaults__)
            copied.__kwdefaults__ = forward.__kwdefaults__
            module.forward = MethodType(copied, module)
            count += 1
    return count


def prove_liger(model: nn.Module) -> None:
    """Compare a model's kernels with its own code, once, when it has come to a GPU.

    Raises:
        InputError: If they do not give the same; see :func:`check_same_passes`.
    """
    inner = inner_model(model)
    kernels = getattr(inner, _UNPROVEN, None)
    if kernels is not None and on_gpu(next(inner.parameters()).device):
        check_same_passes(model, _switch.off, f"policy.liger={kernels}")
        delattr(inner, _UNPROVEN)
