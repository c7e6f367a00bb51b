"""A step with and without Liger's kernels; as a command, by Triton's interpreter."""

import json
import sys

import torch

from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models import liger
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_batch


def step(folder, kernels, anchors=True, **options):
    """Loss, weights, log-probs and gradients of a step with gradient importance and an anchor."""
    module = PreferenceModule(
        PolicyConfig(folder, liger=kernels, **options),
        losses={"preference": WeightedDPOLoss(), **({"triplet": TripletLoss()} if anchors else {})},
    )
    module.configure_model()
    output = module(tiny_batch(), sampling_seed=1)
    output.loss.mean().backward()
    gradients = [p.grad for p in module.built_policy.parameters() if p.grad is not None]
    logps = output.context.responses["policy.logps"].detach()
    return [output.loss.detach(), output.weights, logps, *gradients]


def _mend_interpreter():
    """Give it what a GPU has: numbers that are Triton's, and a square root."""
    from liger_kernel.ops import rms_norm
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def also_floats(value):
        if not isinstance(value, float):
            return convert(value)
        handle = interpreter.TensorHandle(torch.tensor([value]).numpy(), language.float32)
        return language.tensor(handle, language.float32)

    interpreter._implicit_cvt = also_floats
    rms_norm.rsqrt = lambda value: language.rsqrt(value)


def main(folder):
    """Print by how much each value differs, as a share of its norm."""
    _mend_interpreter()
    liger.on_gpu = lambda device: True
    expected, found = (step(folder, each, anchors=False) for each in (None, ["rms_norm", "rope"]))
    pairs = zip(found, expected, strict=True)
    print(json.dumps([float((one - other).norm() / other.norm()) for one, other in pairs]))


if __name__ == "__main__":
    main(sys.argv[1])
