"""Settings in Python are checked as the command line checks them."""

import pytest

from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.sampling.generation import AnchorOptions


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (WeightedDPOLoss, "kl_term", "TDPO2"),
        (GradientImportance, "target", "max-logit"),
        (GradientImportance, "norm", "L1"),
        (GradientImportance, "model", "ref"),
        (GradientImportance, "correction", "neighbors"),
        (AttentionImportance, "reduction", "avg"),
        (AttentionImportance, "model", "ref"),
        (AnchorOptions, "source", "chosen"),
        (Weighting, "prior", "none"),
        (Weighting, "prior_scale", "peak"),
        (Weighting, "scale", "avg"),
        (Weighting, "positions", "prompt"),
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
        (Weighting, "sigma_divisor"),
    ],
)
def test_nan_is_no_number(build, name):
    with pytest.raises(InputError, match=f"{name}=nan"):
        build(**{name: float("nan")})
