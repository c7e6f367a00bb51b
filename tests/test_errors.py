"""Settings in Python are checked as the command line checks them."""

import pytest

from lit_tidpo.anchors import AnchorOptions
from lit_tidpo.components.weighted_dpo import WeightedDPOLoss
from lit_tidpo.errors import InputError
from lit_tidpo.estimators.attention import AttentionImportance
from lit_tidpo.estimators.gradient import GradientImportance
from lit_tidpo.policy import PolicyConfig
from lit_tidpo.weighting import Weighting


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
