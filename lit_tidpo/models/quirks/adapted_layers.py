"""Which layers adapters can wrap."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def not_to_adapt(model: nn.Module) -> list[str]:
    """Names of linear layers that adapters cannot wrap.

    Some are linear by descent only, and hand out something else, such as the routers of Llama 4
    and Phi-MoE. Of others the weight is read where they stand: the fused kernels of Mamba and its
    relatives, whose mixers have an ``A_log``, never call the last projections. And a weight that
    several layers share, as in Zamba, would get the adapters of one merged into all.
    """
    named = list(model.named_modules(remove_duplicate=False))
    layers = [(name, module) for name, module in named if isinstance(module, nn.Linear)]
    weights = Counter(id(module.weight) for _, module in layers)
    kernels = {
        f"{name}.{part}"
        for name, module in named
        if hasattr(module, "A_log")
        for part in ("dt_proj", "out_proj")
    }
    return [
        name
        for name, module in layers
        if name in kernels or weights[id(module.weight)] > 1 or _is_linear_by_descent(module)
    ]


def _is_linear_by_descent(module: nn.Linear) -> bool:
    """Whether a layer of a model's own code computes something else than a linear layer does."""
    of_model = type(module).__module__.startswith(("transformers.models.", "transformers_modules."))
    if not of_model or type(module).forward is nn.Linear.forward:
        return False
    weight = module.weight.detach()
    given = torch.linspace(-1, 1, module.in_features).to(weight).unsqueeze(0)
    with torch.no_grad():
        try:
            found = module(given)
        except Exception:  # whatever it is, it does not take hidden states alone
            return True
        expected = linear(given, weight, module.bias)
    same = isinstance(found, Tensor) and found.shape == expected.shape
    return not (same and torch.allclose(found, expected, rtol=2e-2, atol=1e-3))
