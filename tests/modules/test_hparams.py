"""A checkpoint rebuilds the module that wrote it."""

from __future__ import annotations

import functools

import pytest
import torch

import lit_tidpo.importance
from lit_tidpo.cli import main
from lit_tidpo.errors import InputError
from lit_tidpo.functional import dpo_loss, sequence_sum
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.priors import GaussianPrior, SoftmaxPrior
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import LoraOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.plugins.hparams import as_plain_data
from lit_tidpo.sampling.anchor_options import AnchorOptions

from .runs import QUIET, SGD, every_step, make_module, quiet_trainer

pytestmark = QUIET

# No option as it is by default.
OPTIONS = {
    "importance": HybridImportance(
        GradientImportance("response_logp", norm="l2", exclude_target=True),
        SoftmaxPrior(),
        mix=0.4,
    ),
    "weight_scale": "sum",
    "losses": {
        "main": WeightedDPOLoss(alpha=0.2, beta=0.2),
        "other": TripletLoss(margin=2.0, mean=True),
    },
    "loss_weights": {"other": 0.3},
    "anchor": AnchorOptions(source="chosen_prefix", prefix_fraction=0.25, max_new_tokens=4),
    "importance_every": 2,
    "non_finite": "skip",
    "optimizer": functools.partial(torch.optim.AdamW, lr=0.02, betas=(0.8, 0.9)),
    "lr_schedule": "linear",
    "warmup_steps": 1,
    "seed": 3,
}
LORA = LoraOptions(r=2, alpha=4, dropout=0.1, target_modules=["q_proj", "v_proj"])


def described(module):
    """Everything that makes a module, as plain data."""
    objective = module.objective
    parts = {"importance": objective.importance, **objective.losses}
    (group,) = module.optimization.specimen().param_groups
    return {
        "parts": {name: as_plain_data(part) for name, part in parts.items()},
        "factors": objective.factors,
        "scale": objective.scale,
        "models": module.model_options,
        "policy": module.policy_config,
        "reference": module.reference_path,
        "anchor": module.anchor,
        "importance_every": module.token_weights.kept.refresh_every,
        "non_finite": module.non_finite,
        "optimizer": {name: value for name, value in group.items() if name != "params"},
        "schedule": (module.optimization.lr_schedule, module.optimization.warmup_steps),
        "seed": module.seed,
    }


def predicted(module, data):
    predictions = quiet_trainer().predict(module, data)
    return [value for prediction in predictions for value in prediction.values.values()]


def assert_equal_predictions(first, second, data):
    for one, other in zip(predicted(first, data), predicted(second, data), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy", [{}, {"lora": LORA, "disable_dropout": False}])
def test_a_module_made_in_python(model_folder, data, tmp_path, policy):
    module = make_module(model_folder, policy=policy, **OPTIONS)
    quiet_trainer(max_steps=2, **every_step(tmp_path)).fit(module, data)
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=2.ckpt")
    assert described(loaded) == described(module)
    assert_equal_predictions(loaded, module, data)
    start = make_module(model_folder, policy=policy, **OPTIONS)
    with pytest.raises(AssertionError):
        assert_equal_predictions(start, module, data)


def test_a_module_of_defaults(model_folder, data, tmp_path):
    module = PreferenceModule(
        PolicyConfig(path=model_folder), anchor=AnchorOptions(max_new_tokens=4)
    )
    quiet_trainer(max_steps=1, **every_step(tmp_path)).fit(module, data)
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=1.ckpt")
    assert described(loaded) == described(module)


def test_arguments_may_be_replaced(model_folder, data, tmp_path):
    module = make_module(model_folder, **OPTIONS)
    quiet_trainer(max_steps=1, **every_step(tmp_path)).fit(module, data)
    path = tmp_path / "step=1.ckpt"
    loaded = PreferenceModule.load_from_checkpoint(path, weight_scale="max")
    assert loaded.objective.scale == "max"
    assert {**described(loaded), "scale": "sum"} == described(module)


def test_sft(model_folder, data, tmp_path):
    module = SFTModule(PolicyConfig(path=model_folder), optimizer=SGD, warmup_steps=2)
    quiet_trainer(max_steps=2, **every_step(tmp_path)).fit(module, data)
    loaded = SFTModule.load_from_checkpoint(tmp_path / "step=2.ckpt")
    assert loaded.optimization.warmup_steps == 2
    assert loaded.policy_config == module.policy_config
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


@pytest.fixture
def run_command(model_folder, source, tmp_path):
    """Fit two steps by the command; give the checkpoint."""

    def run(*options):
        main(
            [
                "fit",
                f"--model.policy.path={model_folder}",
                f"--data.source={source}",
                "--data.max_length=48",
                "--data.batch_size=4",
                "--trainer.accelerator=cpu",
                "--trainer.devices=1",
                "--trainer.max_steps=2",
                "--trainer.logger=false",
                "--trainer.enable_progress_bar=false",
                "--trainer.limit_val_batches=0",
                f"--trainer.default_root_dir={tmp_path}",
                "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
                f"--trainer.callbacks.dirpath={tmp_path / 'saved'}",
                "--trainer.callbacks.filename=last",
                "--model.anchor.max_new_tokens=4",
                *options,
            ]
        )
        return tmp_path / "saved" / "last.ckpt"

    return run


COMMAND = [
    "--model.importance=hybrid",
    "--model.importance.estimator=gradient",
    "--model.importance.estimator.norm=l2",
    "--model.importance.mix=0.4",
    '--model.losses={"main": "weighted_dpo", "other": {"class_path": "triplet", '
    '"init_args": {"margin": 2.0}}}',
    '--model.loss_weights={"other": 0.3}',
    "--model.policy.lora={r: 2, target_modules: [q_proj]}",
    "--model.optimizer=SGD",
    "--model.optimizer.lr=0.02",
    "--model.losses.main.beta=0.2",
]


def test_a_module_made_by_the_command(run_command, data, monkeypatch):
    path = run_command(*COMMAND)
    content = torch.load(path, weights_only=True)
    importance = content["hyper_parameters"]["importance"]
    assert importance["class_path"] == "lit_tidpo.importance.hybrid"
    inner = importance["init_args"]["estimator"]["class_path"]
    assert inner == "lit_tidpo.importance.gradient"
    for name in ("gradient", "hybrid"):
        monkeypatch.delattr(lit_tidpo.importance, name)  # as in a fresh process
    loaded = PreferenceModule.load_from_checkpoint(path)
    found = described(loaded)
    importance = loaded.objective.importance
    assert isinstance(importance, HybridImportance)
    assert isinstance(importance.estimator, GradientImportance)
    assert importance.estimator.norm == "l2"
    assert importance.mix == 0.4
    assert isinstance(importance.prior, GaussianPrior)
    assert isinstance(loaded.objective.losses["main"], WeightedDPOLoss)
    assert isinstance(loaded.objective.losses["other"], TripletLoss)
    assert loaded.objective.losses["other"].margin == 2.0
    assert found["factors"] == {"main": 1.0, "other": 0.3}
    assert found["scale"] == "mean"
    assert found["policy"].lora == LoraOptions(r=2, target_modules=["q_proj"])
    assert found["anchor"] == AnchorOptions(max_new_tokens=4)
    assert found["optimizer"]["lr"] == 0.02
    assert loaded.objective.beta == 0.2
    other = PreferenceModule.load_from_checkpoint(path, weight_scale="sum")
    assert other.objective.scale == "sum"
    again = PreferenceModule.load_from_checkpoint(path)
    assert_equal_predictions(loaded, again, data)
    state = content["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_command_keeps_what_was_typed(run_command, source, model_folder, tmp_path, capsys):
    path = run_command(*COMMAND)
    reported = []
    for beta in (0.2, 0.3):
        main(
            [
                "validate",
                f"--ckpt_path={path}",
                f"--model.policy.path={model_folder}",
                f"--data.source={source}",
                "--data.max_length=48",
                *("--trainer.accelerator=cpu", "--trainer.logger=false"),
                "--trainer.enable_progress_bar=false",
                f"--trainer.default_root_dir={tmp_path / str(beta)}",
                "--model.anchor.max_new_tokens=4",
                *COMMAND[:-1],
                f"--model.losses.main.beta={beta}",
            ]
        )
        line = next(row for row in capsys.readouterr().out.splitlines() if "rewards/margins" in row)
        reported.append(float(line.strip(" │").split()[-1]))
    assert reported[1] == pytest.approx(1.5 * reported[0], rel=1e-3)
    assert reported[0] != 0


class Forgetful(DPOLoss):
    def __init__(self, margin):
        self.distance = margin


def test_a_component_that_forgets_its_arguments(model_folder):
    with pytest.raises(InputError, match=r"Forgetful does not keep its arguments \['margin'\]"):
        make_module(model_folder, losses={"preference": Forgetful(1.0)})


class LearnedDPO(torch.nn.Module, LossComponent):
    """DPO with a learned factor of beta."""

    needs = frozenset({"reference.logps"})

    def __init__(self, start=1.0):
        super().__init__()
        self.start = start
        self.factor = torch.nn.Parameter(torch.tensor(start))

    def loss(self, context):
        sums = [
            sequence_sum(context[role].log_ratios, context[role].mask)
            for role in ("chosen", "rejected")
        ]
        return dpo_loss(sums[0] - sums[1], 0.1 * self.factor)


def test_a_component_with_parameters_is_trained_and_saved(model_folder, data, tmp_path):
    module = make_module(model_folder, losses={"learned": LearnedDPO(start=2.0)})
    quiet_trainer(max_steps=3, **every_step(tmp_path)).fit(module, data)
    learned = module.objective.losses["learned"]
    assert learned.factor.item() != 2.0
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=3.ckpt")
    other = loaded.objective.losses["learned"]
    assert other.start == 2.0
    assert other.factor.item() == learned.factor.item()


class Named(PreferenceModule):
    """A subclass with an argument of its own."""

    def __init__(self, policy: PolicyConfig, label: str = "none", seed: int = 0):
        super().__init__(policy, seed=seed, losses={"preference": DPOLoss()})
        self.label = label


def test_a_subclass(model_folder, data, tmp_path):
    module = Named(PolicyConfig(path=model_folder), seed=4)
    quiet_trainer(max_steps=1, **every_step(tmp_path)).fit(module, data)
    loaded = Named.load_from_checkpoint(tmp_path / "step=1.ckpt", label="mine")
    assert loaded.seed == 4
    assert loaded.label == "mine"


def test_attached_models_cannot_be_found_again(model_folder, data, tmp_path):
    module = PreferenceModule(PolicyConfig(), optimizer=SGD, losses={"preference": DPOLoss()})
    module.attach(build_policy(PolicyConfig(path=model_folder)))
    quiet_trainer(max_steps=1, **every_step(tmp_path)).fit(module, data)
    with pytest.raises(InputError, match=r"policy\.path is not set: name a model, or attach"):
        PreferenceModule.load_from_checkpoint(tmp_path / "step=1.ckpt")
