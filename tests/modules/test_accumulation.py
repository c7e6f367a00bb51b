"""Every optimizer step follows the mean over its own examples, however they were cut (G1, G2)."""

from __future__ import annotations

import functools

import pytest
import torch

from .runs import (
    NO_TRIPLET,
    QUIET,
    Recorder,
    assert_same,
    gradients,
    make_data,
    make_module,
    quiet_trainer,
)

pytestmark = QUIET

LEARNING_RATE = 0.05
PLAIN_SGD = functools.partial(torch.optim.SGD, lr=LEARNING_RATE)


@pytest.fixture
def fit(source, model_folder):
    """Train with gradient importance and the KL term; give what was recorded."""

    def run(data, **trainer):
        recorder = Recorder()
        module = make_module(model_folder, optimizer=PLAIN_SGD, **NO_TRIPLET)
        quiet_trainer(callbacks=[recorder], **trainer).fit(
            module, make_data(source, model_folder, **data)
        )
        return recorder

    return run


@pytest.fixture
def by_hand(model_folder):
    """Repeat recorded steps without Trainer: one pair at a time, the mean over a step's pairs."""

    def run(recorder, clip=None):
        module = make_module(model_folder, **NO_TRIPLET)
        module.configure_model()
        steps, losses = [], []
        for window in recorder.windows:
            module.zero_grad()
            total = torch.tensor(0.0)
            for batch in window:
                total = total + module(batch).loss[batch.counted].sum()
            mean = total / sum(int(batch.counted.sum()) for batch in window)
            mean.backward()
            found = gradients(module)
            if clip is not None:
                norm = torch.sqrt(sum(gradient.square().sum() for gradient in found.values()))
                assert norm > clip  # so that clipping does something
                found = {name: gradient * clip / norm for name, gradient in found.items()}
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter -= LEARNING_RATE * found[name]
            steps.append(found)
            losses.append(mean.item())
        return steps, losses

    return run


def assert_follows(recorder, expected, losses, atol=2e-6):
    assert len(recorder.gradients) == len(expected)
    for gradient, wanted in zip(recorder.gradients, expected, strict=True):
        assert max(float(value.abs().max()) for value in wanted.values()) > 100 * atol
        assert_same(gradient, wanted, atol)
    logged = [metrics["train/loss/total"] for metrics in recorder.metrics]
    torch.testing.assert_close(logged, losses, atol=1e-6, rtol=0)


@pytest.mark.parametrize("micro", [1, 2])
def test_one_batch_is_its_accumulated_parts(fit, micro):
    whole = fit({"batch_size": 8}, max_steps=1)
    parts = fit({"batch_size": micro}, max_steps=1, accumulate_grad_batches=8 // micro)
    (one,), (window,) = whole.rows, parts.rows
    assert one[0] == [row for batch in window for row in batch]
    assert_same(parts.gradients[0], whole.gradients[0], atol=2e-6)
    assert_same(parts.parameters[0], whole.parameters[0], atol=1e-6)
    assert_same(parts.metrics[0], whole.metrics[0], atol=2e-5)


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        pytest.param({"max_rows": 10}, [[2, 2, 2, 2], [2]], id="short last window"),
        pytest.param({"max_rows": 11}, [[2, 2, 2, 2], [2, 1]], id="short last batch"),
        pytest.param({"max_rows": 11, "streaming": True}, [[2, 2, 2, 2], [2, 1]], id="stream"),
    ],
)
def test_each_step_is_the_mean_over_its_own_window(fit, by_hand, data, sizes):
    recorder = fit({"batch_size": 2, **data}, max_epochs=2, accumulate_grad_batches=4)
    assert [[len(rows) for rows in window] for window in recorder.rows] == sizes * 2
    assert_follows(recorder, *by_hand(recorder))


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_mean_is_what_is_clipped(fit, by_hand, accumulated):
    recorder = fit(
        {"batch_size": 2, "max_rows": 9},
        max_epochs=1,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=0.01,
    )
    assert len(recorder.rows) == (5 if accumulated == 1 else 2)
    assert_follows(recorder, *by_hand(recorder, clip=0.01), atol=1e-7)
