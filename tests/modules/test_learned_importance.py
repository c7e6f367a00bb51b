"""Weights that are trained with the policy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.modules.preference import PreferenceModule

from .runs import NO_TRIPLET, QUIET, every_step, make_module, quiet_trainer

pytestmark = QUIET


class LearnedMask(nn.Module, ImportanceEstimator):
    """``sigmoid(w a + b)`` of each token's entropy ``a`` under the policy."""

    learned = True
    needs = frozenset({"policy.entropy"})

    def __init__(self, start: float = 0.0):
        super().__init__()
        self.start = start
        self.gate = nn.Linear(1, 1)
        nn.init.constant_(self.gate.weight, start)

    def scores(self, results):
        return self.gate(results["policy.entropy"].detach().unsqueeze(-1)).squeeze(-1).sigmoid()


class UnsaidMask(LearnedMask):
    learned = False


@pytest.mark.parametrize("wrap", [lambda mask: mask, HybridImportance], ids=["alone", "inside"])
@pytest.mark.parametrize("scale", ["mean", "none"])
def test_a_learned_mask_moves_with_the_policy_and_is_saved(
    model_folder, data, tmp_path, wrap, scale
):
    mask = LearnedMask()
    module = make_module(model_folder, importance=wrap(mask), weight_scale=scale, **NO_TRIPLET)
    quiet_trainer(max_steps=3, **every_step(tmp_path)).fit(module, data)
    assert mask.gate.weight.item() != 0.0
    loaded = PreferenceModule.load_from_checkpoint(tmp_path / "step=3.ckpt")
    found = loaded.objective.importance
    other = found if isinstance(found, LearnedMask) else found.estimator
    assert torch.equal(other.gate.weight, mask.gate.weight)


def test_parameters_without_learned_are_refused(model_folder):
    with pytest.raises(InputError, match="UnsaidMask has parameters to train"):
        make_module(model_folder, importance=UnsaidMask(), **NO_TRIPLET)


class DetachedMask(LearnedMask):
    def scores(self, results):
        return super().scores(results).detach()


def test_learned_scores_without_a_graph_are_refused_in_the_first_step(model_folder, data):
    module = make_module(model_folder, importance=HybridImportance(DetachedMask()), **NO_TRIPLET)
    with pytest.raises(InputError, match="DetachedMask says learned = True, but its scores have"):
        quiet_trainer(max_steps=1).fit(module, data)


def test_weights_that_are_trained_are_not_kept(model_folder):
    with pytest.raises(InputError, match=r"importance_every=2 would keep weights that are trained"):
        make_module(model_folder, importance=LearnedMask(), importance_every=2, **NO_TRIPLET)
