"""Bases of few bits, on which adapters are trained (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_tidpo.errors import InputError

Quantization = Literal["nf4", "int8"]


def quantization_settings(kind: Quantization, dtype: torch.dtype) -> Any:
    """Settings by which transformers quantises the weights of linear layers while it reads them.

    Args:
        kind: ``nf4`` has 4 bits in blocks of 64 with scales that are quantised themselves (by
            bitsandbytes), ``int8`` has 8 with a scale for each output (by torchao). Both are
            dequantised for each product, which is computed in ``dtype``.
        dtype: Type of the activations.

    Raises:
        InputError: If the library for it is not there.
    """
    makers: dict[Quantization, Callable[[torch.dtype], Any]] = {"nf4": _nf4, "int8": _int8}
    try:
        return makers[kind](dtype)
    except ImportError as error:
        raise InputError(
            f"policy.quantization={kind!r} needs {error.name or error}: pip install "
            "'lit-tidpo[qlora]'"
        ) from error


def _nf4(dtype: torch.dtype) -> Any:
    import bitsandbytes  # noqa: F401 # transformers would ask for it later, in other words
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _int8(dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def is_quantized(model: nn.Module) -> bool:
    """Whether a model of transformers holds quantised weights."""
    return getattr(model, "hf_quantizer", None) is not None


def dense(parameter: nn.Parameter) -> Tensor:
    """The values of a parameter; those of torchao cannot be computed with before."""
    values = parameter.detach()
    return values.dequantize() if type(values).__module__.startswith("torchao.") else values


def keep_differentiable(model: nn.Module) -> None:
    """Keep layers of 4 bits from packing their weights anew in eval mode on a CPU, for good.

    bitsandbytes does so on CPUs with AVX512-BF16 at the first pass in eval mode whose input takes
    no gradient. Its kernel for such weights has no backward pass: gradients stop there, in train
    mode, too.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
