"""What a training step draws, scores and skips."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from lit_tidpo.errors import NonFiniteError
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.sampling.generation import Generation

from .ddp_runs import SpoiledDPO
from .runs import (
    NO_TRIPLET,
    QUIET,
    SHORT,
    Recorder,
    assert_same,
    gradients,
    make_built,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
)

pytestmark = QUIET


class CountedImportance(GradientImportance):
    """Counts how often it scores."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def scores(self, results):
        self.calls += 1
        return super().scores(results)


class States(Recorder):
    """Keeps the optimizer's state, too."""

    def __init__(self):
        super().__init__()
        self.states = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        state = trainer.optimizers[0].state
        self.states.append([{**state[p]} for p in module.parameters()])
        self.states[-1] = [
            {
                name: torch.as_tensor(value).clone()
                for name, value in entry.items()
                if value is not None
            }
            for entry in self.states[-1]
        ]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_skipped_step_moves_nothing(model_folder, source, optimizer, accumulated):
    recorder = States()
    module = make_module(
        model_folder,
        losses={"preference": SpoiledDPO(rank=0, call=2 * accumulated)},
        non_finite="skip",
        optimizer=lambda parameters: optimizer(parameters, lr=0.01, weight_decay=0.1),
    )
    quiet_trainer(
        max_steps=3,
        callbacks=[recorder],
        accumulate_grad_batches=accumulated,
        gradient_clip_val=1.0,
    ).fit(module, make_data(source, model_folder, batch_size=2))
    first, skipped, third = recorder.parameters
    assert_same(first, skipped)
    for before, after in zip(recorder.states[0], recorder.states[1], strict=True):
        assert_same(before, after)
    assert any(not torch.equal(skipped[name], third[name]) for name in third)
    assert module.skipped_steps == 1
    assert recorder.metrics[1]["train/skipped_steps"] == 1.0
    assert "train/skipped_steps" not in recorder.metrics[0]


def test_the_steps_after_a_skipped_one_are_as_usual(model_folder, data):
    def run(call):
        recorder = Recorder()
        module = make_module(
            model_folder, losses={"preference": SpoiledDPO(rank=0, call=call)}, non_finite="skip"
        )
        quiet_trainer(max_steps=3, callbacks=[recorder]).fit(module, data)
        return module, recorder

    module, recorder = run(call=2)
    usual = make_built(model_folder, losses={"preference": DPOLoss()})
    optimizer = usual.optimization.optimizer([*usual.parameters()])
    for window in (recorder.windows[0], recorder.windows[2]):
        optimizer.zero_grad()
        usual(window[0]).loss.mean().backward()
        optimizer.step()
    assert_same(parameters(module), parameters(usual), atol=1e-7)


def test_by_default_it_raises(model_folder, data):
    module = make_module(model_folder, losses={"preference": SpoiledDPO(rank=0, call=2)})
    with pytest.raises(NonFiniteError, match=r"loss 'preference' is NaN.*non_finite=skip"):
        quiet_trainer(max_steps=3).fit(module, data)
    assert module.skipped_steps == 0


def test_scores_that_are_not_finite_count_too(model_folder, data):
    class Spoiled(GradientImportance):
        def scores(self, results):
            return super().scores(results) * torch.inf

    module = make_module(model_folder, importance=Spoiled(), non_finite="skip", **NO_TRIPLET)
    before = make_built(model_folder)
    quiet_trainer(max_steps=2).fit(module, data)
    assert module.skipped_steps == 2
    assert_same(parameters(module), parameters(before))


@pytest.mark.filterwarnings("ignore:model.anchor has no effect")
@pytest.mark.parametrize(
    ("options", "samples"),
    [
        pytest.param({}, 2, id="default"),
        pytest.param({"loss_weights": {"triplet": 0.0}}, 0, id="gamma 0"),
        pytest.param(NO_TRIPLET, 0, id="no triplet"),
        pytest.param(
            {
                "losses": {"a": WeightedDPOLoss(), "b": TripletLoss(), "c": TripletLoss(2.0)},
                "loss_weights": {"b": 0.0},
            },
            2,
            id="one of two",
        ),
    ],
)
def test_anchors_are_sampled_only_where_they_count(
    model_folder, data, monkeypatch, options, samples
):
    calls = []
    sample = Generation.sample

    def counted(*arguments, **keywords):
        calls.append(arguments)
        return sample(*arguments, **keywords)

    monkeypatch.setattr(Generation, "sample", counted)
    module = make_module(model_folder, anchor=SHORT, **options)
    quiet_trainer(max_steps=2).fit(module, data)
    assert len(calls) == samples


@pytest.mark.parametrize(
    ("every", "scored"),
    [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (3, [0, 3]), (4, [0, 4]), (100, [0])],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_importance_every(model_folder, source, every, scored, parts):
    """Each step sees all pairs, so that their weights are of one age."""
    estimator, calls = CountedImportance(), []

    class Watcher(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            calls.append(estimator.calls - sum(calls))

    module = make_module(model_folder, importance=estimator, importance_every=every, **NO_TRIPLET)
    quiet_trainer(max_epochs=6, accumulate_grad_batches=parts, callbacks=[Watcher()]).fit(
        module, make_data(source, model_folder, batch_size=12 // parts)
    )
    assert calls == [int(step in scored) for step in range(6) for _ in range(parts)]


def test_importance_of_a_batch_is_renewed_when_that_of_a_pair_is_stale(model_folder, data):
    estimator, recorder = CountedImportance(), Recorder()
    module = make_module(model_folder, importance=estimator, importance_every=4, **NO_TRIPLET)
    quiet_trainer(max_epochs=3, callbacks=[recorder]).fit(module, data)
    ages, calls = {}, 0
    for step, ((rows,),) in enumerate(zip(recorder.rows, strict=True)):
        if any(step - ages.get(row, -9) >= 4 for row in rows):
            calls += 1
            ages |= dict.fromkeys(rows, step)
    assert estimator.calls == calls < 9


def test_importance_once_is_that_of_the_start(model_folder, data):
    def weights(module):
        recorder = Recorder()
        quiet_trainer(max_epochs=2, callbacks=[recorder]).fit(module, data)
        return [
            module.token_weights.kept.lookup(window[0], step=0) for window in recorder.windows
        ], recorder

    module = make_module(model_folder, importance_every=0, **NO_TRIPLET)
    kept, recorder = weights(module)
    start = make_built(model_folder, **NO_TRIPLET)
    for found, window in zip(kept, recorder.windows, strict=True):
        torch.testing.assert_close(found, start(window[0]).weights)
    moved = module.eval()(recorder.windows[0][0]).weights
    assert not torch.allclose(moved, kept[0])


@pytest.mark.filterwarnings("ignore:model.importance_every has no effect")
def test_nothing_is_computed_before_the_run_where_no_loss_asks_for_weights(model_folder, data):
    module = make_module(model_folder, importance_every=0, losses={"dpo": DPOLoss()})
    quiet_trainer(max_steps=1).fit(module, data)
    assert not module.token_weights.kept.is_filled


def test_weights_do_not_depend_on_batch_mates(model_folder, source):
    def weights(batch_size):
        data = make_data(source, model_folder, eval_batch_size=batch_size)
        module = make_module(model_folder, **NO_TRIPLET)
        found = {}
        for prediction in quiet_trainer().predict(module, data):
            for role in prediction.batch.roles:
                results = prediction.of_role(role)
                for pair, index in enumerate(prediction.batch.index.tolist()):
                    found[role, index] = results["weights"][pair][results.mask[pair]]
        return found

    assert_same(weights(1), weights(5), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"policy": {"disable_dropout": False}}])
def test_a_step_leaves_the_users_generator_alone(model_folder, batch, options):
    module = make_built(model_folder, anchor=SHORT, **options)
    with torch.no_grad():
        module.policy.lm_head.weight.mul_(1.3)  # anchors count where policy and reference differ
    before = torch.get_rng_state()
    first = module(batch, 3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again, other = module(batch, 3), module(batch, 4)
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.loss, other.loss)
    state = torch.get_rng_state()
    module(batch)  # without a seed it draws from the user's generator
    assert not torch.equal(state, torch.get_rng_state())


def test_a_step_leaves_the_users_gradients_alone(model_folder, batch):
    """W3: attribution adds nothing to what is being accumulated."""
    module = make_built(model_folder, **NO_TRIPLET)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = gradients(module)
    module(batch)
    assert_same(gradients(module), before)


def test_two_runs_with_the_same_seed_are_identical(model_folder, data):
    def run(seed, user_seed):
        torch.manual_seed(user_seed)
        recorder = Recorder()
        module = make_module(
            model_folder, anchor=SHORT, policy={"disable_dropout": False}, seed=seed
        )
        quiet_trainer(max_steps=3, callbacks=[recorder]).fit(module, data)
        return recorder

    first, again, other = run(1, 5), run(1, 6), run(2, 5)
    assert first.metrics == again.metrics
    assert_same(first.parameters[-1], again.parameters[-1])
    assert first.metrics != other.metrics


@pytest.mark.filterwarnings("ignore:a batch is left out of the evaluation:UserWarning")
def test_validation_leaves_spoiled_batches_out_where_training_does(model_folder, data):
    """The second of two batches: the first alone is reported."""
    losses = {"preference": SpoiledDPO(rank=0, call=2)}
    module = make_module(model_folder, losses=losses, non_finite="skip")
    (reported,) = quiet_trainer(limit_val_batches=2).validate(module, data, verbose=False)
    losses = {"preference": SpoiledDPO(rank=0, call=3)}
    module = make_module(model_folder, losses=losses, non_finite="skip")
    (alone,) = quiet_trainer(limit_val_batches=1).validate(module, data, verbose=False)
    assert reported == alone
