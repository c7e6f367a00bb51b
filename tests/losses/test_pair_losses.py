"""Losses of a pair's two scores by hand, and what they refuse."""

from __future__ import annotations

from math import exp, log, log1p, nan

import pytest
import torch

from lit_tidpo.errors import InputError
from lit_tidpo.losses.base import LossComponent, LossContext
from lit_tidpo.losses.divergences import AlphaDivergence, ChiSquaredKL, ForwardKL, JensenShannon
from lit_tidpo.plugins.registry import LOSSES, load
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch


def make(name, **arguments):
    return load(LOSSES, name, LossComponent)(**arguments)


def one_pair():
    """Chosen: two tokens, rejected: one; log-ratios 0.5 and 0.1, and -0.4; scores 0.6 and -0.4.

    Log-probs sum up to -3 and -3, their means are -1.5 and -3. Weighted by 2, 1 and 3: log-ratios
    to 1.1 and -1.2, log-probs to -4 and -9, with means of -2 and -9.
    """
    values = {
        "policy.logps": torch.tensor([[-1.0, -2.0], [-3.0, nan]], dtype=torch.float64),
        "reference.logps": torch.tensor([[-1.5, -2.1], [-2.6, nan]], dtype=torch.float64),
        "policy.log_collision": torch.tensor([[-0.5, -1.5], [-2.0, nan]], dtype=torch.float64),
        "weights": torch.tensor([[2.0, 1.0], [3.0, nan]], dtype=torch.float64),
        "rewards": torch.tensor([5.0, 3.0], dtype=torch.float64),
    }
    mask = torch.tensor([[True, True], [True, False]])
    return LossContext(Results(tiny_batch(pairs=1), values, mask))


def nls(x):
    """``-log sigmoid(x)``."""
    return log1p(exp(-x))


def sigmoid(x):
    return 1 / (1 + exp(-x))


def odds(logp):
    return exp(logp) / (1 - exp(logp))


BY_HAND = [
    ("dpo", {"beta": 0.5}, nls(0.5)),
    ("dpo", {"beta": 0.5, "weighted": True}, nls(0.5 * 2.3)),
    ("dpo", {"beta": 0.5, "length_normalised": True}, nls(0.5 * (0.3 + 0.4))),
    ("dpo", {"beta": 0.5, "divergence": ForwardKL()}, nls(0.5 * (exp(0.4) - exp(-0.6)))),
    (
        "dpo",
        {"beta": 1.0, "divergence": JensenShannon()},
        nls(log(2 * exp(0.6) / (1 + exp(0.6))) - log(2 * exp(-0.4) / (1 + exp(-0.4)))),
    ),
    ("dpo", {"beta": 0.5, "divergence": AlphaDivergence(3.0)}, nls(0.25 * (exp(1.2) - exp(-0.8)))),
    (
        "dpo",
        {"beta": 0.5, "divergence": ChiSquaredKL()},
        nls(0.5 * (exp(0.6) + 0.6 - exp(-0.4) + 0.4)),
    ),
    ("cdpo", {"beta": 0.5, "label_smoothing": 0.1}, 0.9 * nls(0.5) + 0.1 * nls(-0.5)),
    ("robust", {"beta": 0.5, "label_smoothing": 0.1}, (0.9 * nls(0.5) - 0.1 * nls(-0.5)) / 0.8),
    ("ipo", {"beta": 0.25}, (0.7 - 2) ** 2),
    ("ipo", {"beta": 0.25, "length_normalised": False, "weighted": True}, (2.3 - 2) ** 2),
    ("hinge", {"beta": 0.5}, 0.5),
    ("hinge", {"beta": 2.0}, 0.0),
    ("hinge", {"beta": 0.5, "reference_free": True}, 1.0),  # both log-probs are -3
    ("nca_pair", {"beta": 0.5}, nls(0.3) + (nls(-0.3) + nls(0.2)) / 2),
    (
        "exo_pair",
        {"beta": 0.5, "label_smoothing": 0.1},
        sigmoid(0.5) * log(sigmoid(0.5) / 0.9) + sigmoid(-0.5) * log(sigmoid(-0.5) / 0.1),
    ),
    ("bco_pair", {"beta": 0.5}, nls(0.3) + nls(0.2)),
    ("sppo_hard", {"beta": 0.5}, 0.4**2 + 0.6**2),
    ("apo_zero", {"beta": 0.5}, 1 - sigmoid(0.3) + sigmoid(-0.2)),
    ("apo_down", {"beta": 0.5}, sigmoid(0.3) + 1 - sigmoid(0.5)),
    (
        "discopop",
        {"beta": 0.5, "tau": 0.5},
        nls(0.5) * (1 - sigmoid(1)) + exp(-0.5) * sigmoid(1),
    ),
    ("dpop", {"beta": 0.5, "penalty": 3.0}, nls(0.5)),  # the chosen response gained
    ("rpo", {"beta": 0.5, "alpha": 0.2}, nls(0.5) + 0.2 * 1.5),
    ("rpo", {"beta": 0.5, "alpha": 0.2, "weighted": True}, nls(0.5 * 2.3) + 0.2 * 2),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.5}, nls(0.5 * (0.5 + 0.05 + 0.4))),
    ("d2po", {"beta": 0.5, "gamma": 0.5}, nls(0.5 * (0.5 + 0.05 + 0.4))),
    # mean(-1 + 0.5, -2 + 1.5) = -0.5 and -3 + 2 = -1
    ("wpo", {"beta": 0.5}, exp(-0.5 - 1) * nls(0.5)),
    ("wpo", {"beta": 0.5, "aligned": False}, exp(-1.5 - 3) * nls(0.5)),
    ("odpo", {"beta": 0.5, "alpha": 0.7}, nls(0.5 - 0.7 * log(2))),
    ("cal_dpo", {"beta": 0.5, "calibration": 2.0}, nls(1.0) + 2 * (0.4**2 + 0.6**2)),
    ("chi_po", {"beta": 0.5}, nls(0.5 * (exp(0.6) + 0.6 - exp(-0.4) + 0.4))),
    ("chi_po", {"beta": 0.5, "max_reward": 0.25}, nls(0.5)),
    ("simpo", {"beta": 2.0, "margin": 1.0}, nls(2 * 1.5 - 1)),
    ("simpo", {"beta": 2.0, "margin": 1.0, "weighted": True}, nls(2 * 7 - 1)),
    (
        "alpha_po",
        {"beta": 2.0, "margin": 1.0, "alpha": 0.5},
        nls(2 * ((1 - exp(0.75)) / 0.5 - (1 - exp(1.5)) / 0.5) - 1),
    ),
    ("simper", {}, exp(-3) - exp(-1.5)),
    ("cpo", {"beta": 0.5, "alpha": 0.2}, nls(0.0) + 0.2 * 1.5),
    ("cpo", {"beta": 0.1, "alpha": 0.2, "weighted": True}, nls(0.5) + 0.2 * 2),
    ("orpo", {"alpha": 0.2}, 1.5 + 0.2 * nls(log(odds(-1.5) / odds(-3)))),
    ("sft", {}, 1.5),
    ("sft", {"weighted": True}, 2.0),
    # of two tokens -1 (p = 0.37) and -2 (0.14) the second is less likely than the mean, 0.25
    ("conf_po", {"beta": 2.0, "margin": 1.0}, nls(2 * (-2 + 3) - 1)),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), BY_HAND)
def test_it_equals_a_number_worked_by_hand(name, arguments, expected):
    loss = make(name, **arguments).loss(one_pair())
    assert loss.tolist() == pytest.approx([expected], abs=1e-9)


def test_dpop_takes_off_what_the_chosen_response_lost():
    """Roles swapped: scores -0.4 and 0.6, so -log sigmoid(0.5 (-1 - 3 * 0.4))."""
    context = one_pair()
    context["chosen"], context["rejected"] = context["rejected"], context["chosen"]
    loss = make("dpop", beta=0.5, penalty=3.0).loss(context)
    assert loss.tolist() == pytest.approx([nls(-1.1)])


def test_the_weights_of_wpo_take_no_gradient():
    context = one_pair()
    logps = context["chosen"]["policy.logps"].requires_grad_()
    (gradient,) = torch.autograd.grad(make("wpo", beta=0.5).loss(context).sum(), logps)
    assert gradient[0, 0].item() == pytest.approx(-exp(-1.5) * 0.5 * sigmoid(-0.5))


DEFAULTS = {
    "dpo": {"beta": 0.1},
    "cdpo": {"label_smoothing": 0.1},
    "nca_pair": {"beta": 0.01},
    "exo_pair": {"label_smoothing": 0.001},
    "sppo_hard": {"beta": 0.001},
    "discopop": {"beta": 0.05, "tau": 0.05},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "rpo": {"beta": 0.1, "alpha": 1.0},
    "wpo": {"beta": 0.01, "aligned": True},
    "beta_dpo": {"beta": 0.1, "alpha": 0.6, "momentum": 0.9, "left_out": 0.2},
    "odpo": {"alpha": 1.0},
    "simpo": {"beta": 2.0, "margin": 1.0},
    "orpo": {"alpha": 0.1},
    "cpo": {"beta": 0.1, "alpha": 1.0},
    "d2po": {"beta": 0.1, "gamma": 0.98},
    "tgdpo": {"beta": 0.1, "alpha": 0.5},
    "tis_dpo": {"beta": 0.1, "mu": 1.0, "low": -0.5, "high": 1.5},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "tpo": {"beta": 0.01, "alpha": 1.0},
    "hinge": {"beta": 0.05},
    "aot": {"beta": 0.01},
    "aot_unpaired": {"beta": 0.01},
    "bco": {"beta": 0.01},
    "bco_pair": {"beta": 0.01},
    "apo_zero": {"beta": 0.1},
    "apo_down": {"beta": 0.1},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "ld_dpo": {"alpha": 0.5},
    "alpha_po": {"alpha": 0.25, "beta": 2.5, "margin": 0.1},
    "conf_po": {"beta": 1.5, "margin": 1.6},
    "cal_dpo": {"beta": 0.002, "calibration": 0.5},
    "sparse_po": {"beta": 0.1},
    "sepo": {"beta": 1.0, "share": 0.3},
    "tbpo": {"beta": 0.1, "power": 0.0, "scale": 4.0},
    "tbpo_q": {"beta": 0.1, "power": 0.0, "scale": 4.0, "limit": 10.0},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_the_paper(name):
    """Or of its authors' code; docs/components.md says which."""
    found = vars(make(name))
    assert {key: found[key] for key in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ipo", {"beta": 0.0}, r"beta=0\.0: expected a finite number above 0"),
        ("cdpo", {"label_smoothing": 1.5}, r"label_smoothing=1\.5: expected a number from 0 to 1"),
        ("robust", {"label_smoothing": 0.5}, r"label_smoothing=0\.5: .* from 0 to less than 0\.5"),
        ("exo_pair", {"label_smoothing": 0.0}, r"label_smoothing=0\.0: expected a number above 0"),
        ("simpo", {"margin": -1.0}, r"margin=-1\.0: expected a finite number of 0 or more"),
        ("alpha_po", {"alpha": 0.0}, r"alpha=0\.0: .* whose limit is simpo"),
        ("tis_dpo", {"low": 1.0, "high": 0.0}, r"low=1\.0, high=0\.0"),
        ("sepo", {"share": 0.0}, r"share=0\.0: expected a number above 0 to 1"),
        ("d2po", {"gamma": 2.0}, r"gamma=2\.0: expected a number from 0 to 1"),
        ("beta_dpo", {"left_out": 1.0}, r"left_out=1\.0: .* from 0 to less than 1: at 1 no pair"),
        (
            "hinge",
            {"reference_free": True, "divergence": ForwardKL()},
            "reference_free and a divergence exclude each other",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(name, arguments, message):
    with pytest.raises(InputError, match=message):
        make(name, **arguments)


def test_the_limit_of_the_alpha_divergence_is_refused_by_name():
    with pytest.raises(InputError, match=r"alpha=1\.0: .* whose limit is ReverseKL"):
        AlphaDivergence(1.0)


def test_a_reward_that_is_not_above_the_other_is_refused():
    context = one_pair()
    context["chosen"]["rewards"] -= 2.0
    with pytest.raises(InputError, match=r"odpo: the pairs \[0\] .* leave them out"):
        make("odpo").loss(context)


@pytest.mark.parametrize("name", ["simpo", "alpha_po", "simper", "cpo", "orpo", "sft", "conf_po"])
def test_losses_without_a_reference_ask_for_none(name):
    assert make(name).needs == frozenset()
