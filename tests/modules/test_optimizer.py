"""What is told of an optimizer whose steps cannot count."""

import functools
import warnings

import pytest
import torch

from .runs import QUIET, make_module

pytestmark = QUIET


@pytest.mark.parametrize(
    ("dtype", "rate", "lost"),
    [("bfloat16", 1e-6, True), ("bfloat16", 0.1, False), ("float32", 1e-6, False)],
)
def test_steps_that_the_parameters_cannot_hold_are_told_of(model_folder, dtype, rate, lost):
    optimizer = functools.partial(torch.optim.AdamW, lr=rate)
    module = make_module(model_folder, policy={"dtype": dtype}, optimizer=optimizer)
    module.configure_model()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module.configure_optimizers()
    assert any("steps of lr=1e-06 are lost" in str(each.message) for each in told) == lost
