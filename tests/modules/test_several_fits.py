"""One module, several runs: nothing of an earlier one reaches into a later one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.testing import tiny_batch, tiny_policy

from .runs import (
    NO_TRIPLET,
    QUIET,
    SGD,
    fit,
    make_data,
    make_module,
    quiet_trainer,
    reference_of,
    write_data,
)

pytestmark = QUIET


class MeanOne(WeightedDPOLoss):
    """Sees that weights belong to the responses at hand."""

    def loss(self, context):
        for tokens in context.values():
            means = (tokens["weights"] * tokens.mask).sum(-1) / tokens.mask.sum(-1)
            torch.testing.assert_close(means, torch.ones_like(means))
        return super().loss(context)


@pytest.fixture(scope="module")
def other_source(tmp_path_factory):
    """As many pairs, with other tokens and lengths."""
    folder = tmp_path_factory.mktemp("data") / "other"
    source = write_data(folder)
    file = folder / "train.jsonl"
    file.write_text(file.read_text().replace(" yes", " certainly").replace(" no", " n"))
    return source


@pytest.mark.parametrize("every", [0, 5])
def test_weights_are_those_of_the_data_at_hand(model_folder, source, other_source, every):
    module = make_module(
        model_folder, losses={"preference": MeanOne(alpha=0.0)}, importance_every=every
    )
    for data in (source, other_source):
        fit(module, make_data(data, model_folder))


def test_anchors_are_those_of_the_data_at_hand(model_folder, source, other_source, monkeypatch):
    sample, prompts = Generation.sample, []

    def spy(sampler, policy, batch, *arguments):
        prompts.append(batch.input_ids)
        return sample(sampler, policy, batch, *arguments)

    monkeypatch.setattr(Generation, "sample", spy)
    module = make_module(model_folder, anchor=AnchorOptions(max_new_tokens=3, reuse_steps=3))
    for data in (source, other_source):
        fit(module, make_data(data, model_folder, lookahead=3))
    assert len(prompts) == 2


def test_reference_log_probs_are_those_of_the_reference_at_hand(tmp_path, model_folder, source):
    """A policy attached anew is its own reference, from which it does not differ yet."""
    module = PreferenceModule(
        PolicyConfig(), losses={"dpo": DPOLoss()}, reference_cache=str(tmp_path), optimizer=SGD
    )
    data = make_data(source, model_folder)
    start = make_module(model_folder, **NO_TRIPLET)
    start.configure_model()
    module.attach(start.policy)
    fit(module, data)
    module.attach(module.policy)
    recorder = fit(module, data, max_steps=1)
    assert recorder.metrics[0]["train/rewards/chosen"] == pytest.approx(0, abs=1e-5)


class Stop(Callback):
    """Interrupts a fit within its first window."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        raise RuntimeError("power cut")


def test_half_a_window_is_forgotten(model_folder, source):
    """G1: the next first step is scaled by its own batches alone."""
    options = {"accumulate_grad_batches": 2, "max_steps": 1}
    first = make_data(source, model_folder, batch_size=3)
    modules = [make_module(model_folder, **NO_TRIPLET) for _ in range(2)]
    with pytest.raises(RuntimeError, match="power cut"):
        fit(modules[0], first, callbacks=[Stop()], **options)
    assert modules[0]._window._amounts
    modules[0].zero_grad()
    stopped, fresh = (
        fit(module, make_data(source, model_folder, batch_size=2), **options) for module in modules
    )
    for name, gradient in fresh.gradients[0].items():
        torch.testing.assert_close(stopped.gradients[0][name], gradient)
    assert stopped.metrics == fresh.metrics


def test_weights_before_training_are_of_all_data_by_the_starting_policy(model_folder, source):
    """Also of the pairs that the first epoch drops."""
    module = make_module(model_folder, importance_every=0, **NO_TRIPLET)
    data = make_data(source, model_folder, batch_size=5, drop_last=True)  # of 12
    fit(module, data, max_epochs=2, max_steps=-1)
    made_at = {pair: step for pair, (step, _) in module.token_weights.kept._entries.items()}
    assert made_at == dict.fromkeys(range(12), 0)


def test_weights_before_training_need_data_with_an_end(model_folder, source):
    module = make_module(model_folder, importance_every=0, **NO_TRIPLET)
    with pytest.raises(InputError, match=r"importance_every=0 needs .* got a stream"):
        fit(module, make_data(source, model_folder, streaming=True))


def test_a_reference_that_moved_during_validation_can_serve_a_graph():
    """GPU: the first move may fall into Lightning's inference mode. Here the dtype moves."""
    model = tiny_policy(seed=1).double()
    move = model.to
    model.to = lambda device: move(torch.float32)
    module = PreferenceModule(PolicyConfig(), losses={"dpo": DPOLoss()})
    module.attach(tiny_policy(), tiny_policy())
    reference_of(module).model = model
    with torch.inference_mode(), reference_of(module).active(module.policy, torch.device("cpu")):
        pass
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_a_policy_that_is_there_already_is_not_left_unsharded(model_folder):
    module = make_module(model_folder, **NO_TRIPLET)
    module.attach(tiny_policy())
    module._trainer = quiet_trainer(strategy=ModelParallelStrategy(), devices=2)
    with pytest.raises(InputError, match="Trainer build it"):
        module.setup("fit")


def test_rows_that_no_batch_can_have_are_refused():
    module = PreferenceModule(PolicyConfig(), losses={"dpo": DPOLoss()})
    module.attach(tiny_policy())
    batch = tiny_batch()
    for name, value in (("prompt_lengths", 0), ("lengths", batch.input_ids.shape[1] + 1)):
        lengths = getattr(batch, name).clone()
        lengths[1] = value
        with pytest.raises(InputError, match=rf"row 1 .*{name}={value}.*expected 1 <= "):
            module(dataclasses.replace(batch, **{name: lengths}))
