"""Models beside policy and reference, which components ask for by name."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import ModelOptions, PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule

from .runs import LORA, QUIET, every_step, fit, make_module, quiet_trainer, write_model

pytestmark = QUIET


class Contrast(ImportanceEstimator):
    """How much more a token is to one model's liking than to another's."""

    def __init__(self, one="teacher", other="policy"):
        self.one = one
        self.other = other

    @property
    def needs(self):
        return frozenset({f"{self.one}.logps", f"{self.other}.logps"})

    def scores(self, results):
        return (results[f"{self.one}.logps"] - results[f"{self.other}.logps"]).abs()


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("other"), rms_norm_eps=0.5)


def make(model_folder, teacher, importance=None, **options):
    losses = {"preference": WeightedDPOLoss(alpha=0)}
    models = {"teacher": teacher}
    return make_module(
        model_folder, losses=losses, importance=importance or Contrast(), models=models, **options
    )


@pytest.mark.parametrize("policy", [{}, LORA], ids=["full", "adapters"])
@pytest.mark.parametrize("kind", ["model", "prompt", "adapter", "model and prompt"])
def test_a_further_model_weighs_tokens_and_is_not_trained(
    model_folder, data, batch, other, adapter, kind, policy
):
    options = {
        "model": ModelOptions(path=other),
        "prompt": ModelOptions(prompt="Be kind. "),
        "adapter": ModelOptions(adapter=adapter),
        "model and prompt": ModelOptions(path=other, prompt="Be kind. "),
    }[kind]
    module = make(model_folder, options, policy=policy)
    recorder = fit(module, data)
    results = module(batch).context.responses
    assert (results["teacher.logps"] - results["policy.logps"]).abs().max() > 1e-2
    assert not results["teacher.logps"].requires_grad
    assert len(recorder.metrics) == 3
    teacher = module.models.others["teacher"].model
    assert (teacher is None) == (kind == "prompt")
    if teacher is not None:
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_further_model_is_not_in_the_checkpoint_and_comes_back_with_it(
    model_folder, data, batch, other, tmp_path
):
    module = make(model_folder, ModelOptions(path=other))
    quiet_trainer(max_steps=1, **every_step(tmp_path)).fit(module, data)
    content = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    assert all(name.startswith("policy.") for name in content["state_dict"])
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=1.ckpt")
    for name in ("teacher.logps", "weights"):
        ours, theirs = (m.eval()(batch).context.responses[name] for m in (loaded, module))
        torch.testing.assert_close(ours, theirs)


def test_attached_further_models_serve(model_folder, batch, other):
    config = PolicyConfig(path=model_folder)
    module = PreferenceModule(
        PolicyConfig(),
        losses={"preference": WeightedDPOLoss(alpha=0)},
        importance=Contrast(),
        models={"teacher": ModelOptions(path=other)},
    )
    module.attach(build_policy(config), models={"teacher": build_policy(PolicyConfig(path=other))})
    assert "teacher.logps" in module(batch).context.responses


def test_unknown_models_are_refused_when_the_module_is_built(model_folder, other):
    with pytest.raises(InputError, match=r"'oracle\.logps', but .* add model\.models\.oracle"):
        make(model_folder, ModelOptions(path=other), Contrast("oracle"))


def test_a_further_model_that_nobody_asks_for_is_told(model_folder, other):
    with pytest.warns(UserWarning, match=r"model\.models has no effect for \['teacher'\]"):
        make(model_folder, ModelOptions(path=other), Contrast("reference"))


def test_vocabularies_must_agree(model_folder, tmp_path):
    module = make(model_folder, ModelOptions(path=write_model(tmp_path, vocabulary=300)))
    with pytest.raises(InputError, match=r"policy and teacher have different vocabularies"):
        module.configure_model()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs a path, an adapter or a prompt"),
        ({"revision": "v2", "prompt": "x"}, "revision='v2' has no effect without a path"),
    ],
)
def test_options_that_make_no_model_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        ModelOptions(**options)
