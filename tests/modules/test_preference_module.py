"""The preference module under a Trainer: its models, what it logs and what it predicts."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.generation import Generation

from .runs import (
    NO_TRIPLET,
    QUIET,
    SHORT,
    Recorder,
    assert_same,
    make_built,
    make_data,
    make_module,
    quiet_trainer,
    reference_of,
    write_model,
)

pytestmark = QUIET


def test_modes_and_the_reference(model_folder, data):
    modes = []

    class Watcher(Callback):
        def _watch(self, trainer, module, *_):
            policy = {child.training for child in module.policy.modules()}
            reference = {child.training for child in reference_of(module).model.modules()}
            modes.append((policy, reference))

        on_train_batch_start = on_train_batch_end = _watch

    module = make_module(model_folder, anchor=SHORT)
    trainer = quiet_trainer(
        max_epochs=2, callbacks=[Watcher()], limit_val_batches=1.0, val_check_interval=1
    )
    trainer.fit(module, data)
    assert len(modes) == 12
    assert all(mode == ({True}, {False}) for mode in modes)
    start = build_policy(module.policy_config)
    assert_same(reference_of(module).model.state_dict(), start.state_dict())
    assert not any(frozen.requires_grad for frozen in reference_of(module).model.parameters())
    assert any(
        not torch.equal(value, start.state_dict()[name])
        for name, value in module.policy.state_dict().items()
    )
    policy, reference = module.policy, reference_of(module)
    module.configure_model()
    assert module.policy is policy
    assert reference_of(module) is reference


def test_the_reference_is_in_no_module_tree(model_folder):
    module = make_built(model_folder)
    frozen = {id(parameter) for parameter in reference_of(module).model.parameters()}
    assert frozen
    assert not any(id(parameter) in frozen for parameter in module.parameters())
    assert all(name.startswith("policy.") for name in module.state_dict())


def test_a_reference_of_its_own(model_folder, tmp_path, batch):
    other = write_model(tmp_path, rms_norm_eps=0.5)
    module = make_built(model_folder, reference=other, **NO_TRIPLET)
    expected = build_policy(PolicyConfig(path=other)).eval()
    with torch.no_grad():
        wanted = _response_sums(expected, batch)
    found = module(batch).context
    for role in ("chosen", "rejected"):
        sums = found[role]["reference.logps"].sum(-1)
        torch.testing.assert_close(sums, wanted[batch.rows(role)], atol=1e-4, rtol=0)
        assert (sums - found[role]["policy.logps"].detach().sum(-1)).abs().min() > 1e-2


def test_a_random_policy_may_have_a_trained_reference(model_folder, tmp_path):
    config = PolicyConfig(path=model_folder, init="random", init_seed=3)
    module = PreferenceModule(config, reference=write_model(tmp_path))
    module.configure_model()
    wanted = build_policy(PolicyConfig(path=str(tmp_path))).state_dict()
    assert_same(reference_of(module).model.state_dict(), wanted)


def test_vocabularies_must_agree(model_folder, tmp_path):
    other = write_model(tmp_path, vocabulary=300)
    with pytest.raises(InputError, match=r"different vocabularies \(259 and 300 entries\)"):
        make_built(model_folder, reference=other)


def _response_sums(model, batch):
    """Log-prob of each row's response by the plain formula, one row at a time."""
    sums = []
    for row, prompt, length in zip(
        batch.input_ids, batch.prompt_lengths, batch.lengths, strict=True
    ):
        ids = row[:length].unsqueeze(0)
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
        sums.append(sum(logps[place - 1, ids[0, place]] for place in range(prompt, length)))
    return torch.stack(sums)


def test_attached_models(model_folder, data, batch):
    policy, reference = (build_policy(PolicyConfig(path=model_folder)) for _ in range(2))
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    module = PreferenceModule(PolicyConfig(), **NO_TRIPLET)
    module.attach(policy.eval(), reference)
    assert module.policy is policy
    assert policy.training
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert module(batch).context["chosen"].log_ratios.abs().max() > 0.1
    quiet_trainer(max_steps=1).fit(module, data)
    assert module.policy is policy


def test_a_module_without_models_says_so(batch):
    module = PreferenceModule(PolicyConfig())
    with pytest.raises(InputError, match="the policy is not built yet"):
        module(batch)
    with pytest.raises(InputError, match=r"policy\.path is not set.*attach"):
        module.configure_model()


# Evaluation


def _by_hand(module, data):
    """Means over the validation pairs, each computed alone."""
    rows = []
    loader = data.val_dataloader()
    for position in range(len(loader.dataset)):
        batch = loader.collate_fn([loader.dataset[position]])
        sums = _response_sums(module.policy, batch).tolist()
        frozen = _response_sums(reference_of(module).model, batch).tolist()
        chosen, rejected = (now - then for now, then in zip(sums, frozen, strict=True))
        found = module(batch)
        weights = found.context["chosen"]["weights"]
        share = (weights / weights.sum()).max()
        rows.append(
            {
                "loss/total": found.loss.item(),
                "rewards/chosen": 0.1 * chosen,
                "rewards/margins": 0.1 * (chosen - rejected),
                "rewards/accuracies": float(chosen > rejected),
                "logps/rejected": sums[1],
                "importance/chosen_max_share": share.item(),
            }
        )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@pytest.fixture
def trained(model_folder, data):
    """A module that has left its reference."""
    module = make_module(model_folder, **NO_TRIPLET)
    quiet_trainer(max_steps=2).fit(module, data)
    return module


def test_validation_is_the_mean_over_pairs(trained, source, model_folder):
    data = make_data(source, model_folder, eval_batch_size=2)
    trainer = quiet_trainer(limit_val_batches=1.0)
    (validated,) = trainer.validate(trained, data, verbose=False)
    expected = _by_hand(trained, data)
    assert abs(expected["rewards/margins"]) > 0.01
    found = {name: validated[f"val/{name}"] for name in expected}
    assert_same(found, expected, atol=1e-4)
    # in inference mode, in fit without gradients, and after a validation on its own
    fitting = quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1.0)
    trained.optimization.make = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    fitting.fit(trained, data)
    logged = fitting.callback_metrics
    assert_same({name: logged[name] for name in validated}, validated, atol=1e-6)
    (tested,) = quiet_trainer().test(trained, _tested(source, model_folder), verbose=False)
    assert_same(
        {name.replace("test/", "val/"): value for name, value in tested.items()}, validated, 1e-5
    )


def _tested(source, model_folder):
    return make_data(source, model_folder, test_split="validation", eval_batch_size=5)


def test_predict_tells_every_pair(trained, source, model_folder):
    data = make_data(source, model_folder, eval_batch_size=2)
    predictions = quiet_trainer().predict(trained, data)
    indices = [index for each in predictions for index in each.batch.index.tolist()]
    assert indices == [0, 1, 2, 3, 4]
    with torch.no_grad():
        for prediction in predictions:
            sums = _response_sums(trained.policy, prediction.batch)
            frozen = _response_sums(reference_of(trained).model, prediction.batch)
            assert prediction.values.keys() >= {"reference.kl", "scores"}
            assert not any(value.requires_grad for value in prediction.values.values())
            for role in prediction.batch.roles:
                results = prediction.of_role(role)
                rows = prediction.batch.rows(role)
                expected = sums[rows] - frozen[rows]
                torch.testing.assert_close(results.log_ratios.sum(-1), expected, atol=1e-4, rtol=0)
                mean = results["weights"].sum(-1) / results.mask.sum(-1)
                torch.testing.assert_close(mean, torch.ones_like(mean))


@pytest.mark.filterwarnings("ignore:model.importance and model.weight_scale have")
def test_predict_scores_though_no_loss_asks_for_weights(model_folder, data):
    module = make_module(model_folder, losses={"preference": DPOLoss()})
    (first, *_) = quiet_trainer().predict(module, data)
    assert float(first.of_role("chosen")["weights"].std()) > 0
    module = make_module(
        model_folder, losses={"preference": DPOLoss()}, importance=AttentionImportance()
    )
    with pytest.raises(InputError, match="attn_implementation=eager"):
        quiet_trainer().predict(module, data)


PREFERENCE = {
    *("loss/total", "loss/preference"),
    *(f"{kind}/{role}" for kind in ("rewards", "logps", "kl") for role in ("chosen", "rejected")),
    *("rewards/weighted_chosen", "rewards/weighted_rejected"),
    *("rewards/margins", "rewards/weighted_margins"),
    *("rewards/accuracies", "rewards/weighted_accuracies", "logps/accuracies"),
    *(
        f"importance/{role}_{name}"
        for role in ("chosen", "rejected")
        for name in ("max_share", "effective_tokens", "last_token_share", "no_signal")
    ),
}
ANCHOR = {"loss/triplet", "anchor/length", "anchor/empty"}
UNWEIGHTED = {"loss/total", "loss/preference"} | {
    name
    for name in PREFERENCE
    if name.startswith(("rewards/", "logps/")) and "weighted" not in name
}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        pytest.param({"anchor": SHORT}, PREFERENCE | ANCHOR, id="TI-DPO"),
        pytest.param(NO_TRIPLET, PREFERENCE, id="no triplet"),
        pytest.param({"losses": {"preference": DPOLoss()}}, UNWEIGHTED, id="DPO"),
    ],
)
def test_names_that_are_logged(model_folder, data, options, names):
    trainer = quiet_trainer(max_steps=3, limit_val_batches=1.0)
    trainer.fit(make_module(model_folder, **options), data)
    logged = set(trainer.callback_metrics)
    assert logged == {f"{stage}/{name}" for stage in ("train", "val") for name in names}


def test_validation_leaves_training_alone(model_folder, data):
    def run(**validation):
        recorder = Recorder()
        module = make_module(model_folder, anchor=SHORT, policy={"disable_dropout": False})
        quiet_trainer(max_steps=4, callbacks=[recorder], **validation).fit(module, data)
        return recorder

    without = run()
    with_validation = run(limit_val_batches=1.0, val_check_interval=1, num_sanity_val_steps=2)
    assert_same(without.parameters[-1], with_validation.parameters[-1])


@pytest.mark.parametrize(
    ("trainer", "policy"),
    [({"precision": "bf16-mixed"}, {}), ({}, {"dtype": "bfloat16"})],
    ids=["bf16-mixed", "bfloat16"],
)
def test_half_precision(model_folder, data, trainer, policy):
    recorder = Recorder()
    module = make_module(model_folder, anchor=SHORT, policy=policy)
    quiet_trainer(max_steps=3, callbacks=[recorder], limit_val_batches=1.0, **trainer).fit(
        module, data
    )
    first = recorder.metrics[0]
    # the policy is the reference yet, also in half precision
    assert first["train/rewards/chosen"] == first["train/kl/chosen"] == 0.0
    assert first["train/loss/preference"] == pytest.approx(0.6931472, abs=1e-6)
    for metrics in recorder.metrics:
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    moved = recorder.metrics[-1]
    assert moved["train/kl/chosen"] > 1e-3
    expected = torch.bfloat16 if policy else torch.float32
    assert {parameter.dtype for parameter in module.policy.parameters()} == {expected}


def test_evaluation_by_rewards_alone_runs_no_estimator_and_samples_no_anchor(
    source, model_folder, monkeypatch
):
    """The rewards are those of the whole objective's evaluation."""

    def validate(**options):
        module = make_module(model_folder, **options)
        data = make_data(source, model_folder)
        return quiet_trainer(limit_val_batches=1.0).validate(module, data, verbose=False)[0]

    whole = validate()
    refuse = pytest.fail
    monkeypatch.setattr("lit_tidpo.sampling.generation.Generation.sample", refuse)
    monkeypatch.setattr("lit_tidpo.objective.Objective.weigh", refuse)
    rewards = validate(evaluation="rewards")
    assert {"val/rewards/accuracies", "val/logps/accuracies"} <= rewards.keys() < whole.keys()
    assert rewards == {name: pytest.approx(whole[name], abs=1e-6) for name in rewards}


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"anchor": AnchorOptions(max_new_tokens=3)}, "model.anchor has no effect"),
        ({"sampler": Generation(AnchorOptions())}, "model.sampler has no effect"),
        ({"weight_scale": "sum"}, "have an effect on predict alone"),
        ({"importance_every": 2}, "model.importance_every has no effect"),
        ({"importance": AttentionImportance()}, "have an effect on predict alone"),
    ],
)
def test_settings_that_no_loss_uses_are_told(model_folder, options, warning):
    with pytest.warns(UserWarning, match=warning):
        make_module(model_folder, losses={"dpo": DPOLoss()}, **options)
