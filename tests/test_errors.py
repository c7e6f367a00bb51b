"""Settings in Python are checked as the command line checks them."""

from functools import partial

import pytest

from lit_tidpo import PreferenceModule
from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.hybrid_importance import HybridImportance
from lit_tidpo.importance.priors import GaussianPrior
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.sampling.anchor_options import AnchorOptions


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (WeightedDPOLoss, "kl_term", "TDPO2"),
        (GradientImportance, "target", "max-logit"),
        (GradientImportance, "norm", "L1"),
        (AttentionImportance, "reduction", "avg"),
        (AnchorOptions, "source", "chosen"),
        (HybridImportance, "positions", "prompt"),
        (partial(PreferenceModule, PolicyConfig()), "weight_scale", "avg"),
        (PolicyConfig, "init", "scratch"),
        (PolicyConfig, "dtype", "bf16"),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_choices(build, name, value):
    with pytest.raises(InputError, match=rf"{name}='{value}': expected one of \("):
        build(**{name: value})


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (WeightedDPOLoss, "alpha"),
        (AnchorOptions, "temperature"),
        (WeightedDPOLoss, "beta"),
        (DPOLoss, "beta"),
        (TripletLoss, "margin"),
        (HybridImportance, "mix"),
        (GaussianPrior, "sigma_divisor"),
    ],
)
def test_nan_is_no_number(build, name):
    with pytest.raises(InputError, match=f"{name}=nan"):
        build(**{name: float("nan")})
