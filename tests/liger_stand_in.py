"""What stands in for Liger where it is not: kernels in PyTorch that work in place as its own do."""

import sys
from types import MethodType, ModuleType

import torch
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral


class Norm(torch.autograd.Function):
    """RMSNorm; ``in_place`` writes the gradient over the one that it is given."""

    @staticmethod
    def forward(ctx, states, weight, eps, in_place):
        inverse = (states.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(states, weight, inverse)
        ctx.in_place = in_place
        return weight * states * inverse

    @staticmethod
    def backward(ctx, given):
        states, weight, inverse = ctx.saved_tensors
        unit = states * inverse
        of_weight = (given * unit).flatten(0, -2).sum(0)
        inner = given * weight
        found = inverse * (inner - unit * (inner * unit).mean(-1, keepdim=True))
        return given.copy_(found) if ctx.in_place else found, of_weight, None, None


def _turn(states, cos, sin):
    """Rotate in place, where the states lie as Triton would see them."""
    half = states.shape[-1] // 2
    rows = states.transpose(1, 2).contiguous()
    one, two = rows[..., :half].clone(), rows[..., half:].clone()
    cos, sin = cos[..., :half].unsqueeze(2), sin[..., :half].unsqueeze(2)
    rows[..., :half] = one * cos - two * sin
    rows[..., half:] = two * cos + one * sin
    return rows.transpose(1, 2)


class Rope(torch.autograd.Function):
    """RoPE, in place in both directions."""

    @staticmethod
    def forward(ctx, query, key, cos, sin):
        ctx.save_for_backward(cos, sin)
        with torch.no_grad():
            return _turn(query.detach(), cos, sin), _turn(key.detach(), cos, sin)

    @staticmethod
    def backward(ctx, of_query, of_key):
        cos, sin = ctx.saved_tensors
        return _turn(of_query, cos, -sin), _turn(of_key, cos, -sin), None, None


class LigerRMSNorm(torch.nn.Module):
    def forward(self, states):
        calls.append("rms_norm")
        return norm(states, self.weight, self.variance_epsilon, self.in_place)

    forward.__module__ = "liger_kernel.transformers.rms_norm"


def liger_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    calls.append("rope")
    return rope(q, k, cos, sin)


calls = []
norm, rope = Norm.apply, Rope.apply


def _applier(modeling, norm_class):
    """As Liger: in the module for all models to come, and in the model that is there."""

    def apply(rope=True, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None):
        assert not fused_linear_cross_entropy
        assert not swiglu
        if rope:
            modeling.apply_rotary_pos_emb = liger_rotary_pos_emb
        if rms_norm:
            setattr(modeling, norm_class, LigerRMSNorm)
            for module in model.modules():
                if type(module).__name__ == norm_class:
                    module.in_place = True
                    module.forward = MethodType(LigerRMSNorm.forward, module)

    return apply


def install(monkeypatch):
    """Put it where Liger would be; gives the list of what its kernels were called for."""
    names = ["liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch"]
    modules = [ModuleType(name) for name in names]
    modules[-1].MODEL_TYPE_TO_APPLY_LIGER_FN = {
        "llama": _applier(modeling_llama, "LlamaRMSNorm"),
        "mistral": _applier(modeling_mistral, "MistralRMSNorm"),
    }
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    calls.clear()
    return calls
