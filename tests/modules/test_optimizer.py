"""What is told of an optimizer whose steps cannot count, and which ones clip."""

import functools
import warnings

import pytest
import torch

from .runs import (
    NO_TRIPLET,
    QUIET,
    assert_same,
    fit,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
)

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


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_clips_in_bf16_as_another_does(model_folder, source, algorithm):
    """Lightning refuses it, though bf16 scales no gradients."""
    trained = []
    for fused in (False, True):
        optimizer = functools.partial(torch.optim.SGD, lr=0.1, fused=fused)
        module = make_module(model_folder, optimizer=optimizer)
        trainer = quiet_trainer(
            max_steps=2,
            precision="bf16-mixed",
            gradient_clip_val=0.01,
            gradient_clip_algorithm=algorithm,
        )
        trainer.fit(module, make_data(source, model_folder))
        trained.append(parameters(module))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, msg=name)


@pytest.mark.filterwarnings("ignore:::bitsandbytes")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
@pytest.mark.parametrize("name", ["PagedAdamW8bit", "AdamW8bit"])
def test_optimizers_of_8_bits_resume(name, model_folder, source, tmp_path):
    """Their states are bytes with scales; a resumed run has those of the whole one."""
    library = pytest.importorskip("bitsandbytes", reason="pip install 'lit-tidpo[qlora]'")

    def run(folder=None, ckpt_path=None):
        optimizer = functools.partial(getattr(library.optim, name), lr=0.01)
        module = make_module(model_folder, optimizer=optimizer, **NO_TRIPLET)
        recorder = fit(module, make_data(source, model_folder), folder, ckpt_path)
        states = module.trainer.optimizers[0].state.values()
        # those of the embeddings alone, which have 4,096 numbers or more
        assert any(state["state1"].dtype == torch.uint8 for state in states)
        return recorder.parameters[-1]

    whole = run(tmp_path)
    assert_same(run(ckpt_path=str(tmp_path / "step=2.ckpt")), whole)
