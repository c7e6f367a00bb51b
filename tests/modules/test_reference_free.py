"""A loss that asks for no reference neither builds nor runs one."""

from __future__ import annotations

import pytest
from torch.nn.functional import softplus

from lit_tidpo.errors import InputError
from lit_tidpo.functional import sequence_sum
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.modules import referenced

from .runs import QUIET, assert_same, fit, make_data, make_module, quiet_trainer, reference_of

pytestmark = QUIET


class SimPO(LossComponent):
    """``-log sigmoid(beta (mean log p(y_w) - mean log p(y_l)) - margin)`` (arXiv 2405.14734)."""

    def __init__(self, beta=2.0, margin=0.5):
        self.beta = beta
        self.margin = margin

    def loss(self, context):
        means = [
            sequence_sum(context[role]["policy.logps"], context[role].mask)
            / context[role].mask.sum(-1)
            for role in ("chosen", "rejected")
        ]
        return softplus(self.margin - self.beta * (means[0] - means[1]))


FREE = {"losses": {"simpo": SimPO()}}


@pytest.fixture
def no_reference(monkeypatch):
    """Any reference that is made fails the test."""
    for name in ("FrozenModel", "BaseOfAdapters"):
        monkeypatch.setattr(referenced, name, pytest.fail)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.usefixtures("no_reference")
def test_it_trains_validates_predicts_and_resumes_without(model_folder, source, tmp_path):
    options = {"limit_val_batches": 1.0, "max_epochs": 2, "max_steps": -1}
    module = make_module(model_folder, **FREE)
    whole = fit(module, make_data(source, model_folder), tmp_path, **options)
    assert module.models.others == {}
    logged = whole.metrics[-1]
    assert {"train/loss/simpo", "val/logps/accuracies"} <= logged.keys()
    assert not any("rewards" in name or "kl" in name for name in logged)
    assert whole.metrics[-1]["train/loss/simpo"] < whole.metrics[0]["train/loss/simpo"]
    predictions = quiet_trainer().predict(module, make_data(source, model_folder))
    assert predictions[0].values.keys() == {"policy.logps", "weights", "scores"}
    again = make_module(model_folder, **FREE)
    rest = fit(
        again, make_data(source, model_folder), ckpt_path=tmp_path / "step=2.ckpt", **options
    )
    assert_same(rest.parameters[-1], whole.parameters[-1])


def test_a_reference_that_was_asked_for_reports_rewards(model_folder, source):
    module = make_module(model_folder, reference=model_folder, **FREE)
    recorder = fit(module, make_data(source, model_folder))
    assert reference_of(module).model is not None
    assert abs(recorder.metrics[-1]["train/rewards/margins"]) > 1e-3


def test_evaluation_by_rewards_alone_is_left_with_log_probs(model_folder, source):
    module = make_module(model_folder, evaluation="rewards", **FREE)
    trainer = quiet_trainer(limit_val_batches=1.0)
    (found,) = trainer.validate(module, make_data(source, model_folder), verbose=False)
    assert found.keys() == {"val/logps/chosen", "val/logps/rejected", "val/logps/accuracies"}


def test_a_cache_of_a_reference_that_nobody_asks_for_is_refused(model_folder):
    with pytest.raises(InputError, match=r"reference_cache='kept' keeps log-probs of a reference"):
        make_module(model_folder, reference_cache="kept", **FREE)
