import math

import pytest
import torch
from lit_tidpo_surprisal import ClippedSurprisalImportance

from lit_tidpo.errors import InputError
from lit_tidpo.structures import Results
from lit_tidpo.testing import check_importance_estimator, tiny_batch

# a prompt token, then response tokens that the reference gives 1, 1/2 and 1/8, then padding
LOGPS = torch.tensor([[0.0, 0.0, -math.log(2), -math.log(8), 0.0]])
LN2 = 0.693147


def scores(logps=LOGPS, **options):
    results = Results(tiny_batch(), {"policy.logps": logps - 9, "reference.logps": logps})
    return ClippedSurprisalImportance(**options).scores(results)


@pytest.mark.parametrize(
    "options", [{}, {"power": 0.5}, {"power": 2.0, "clip": 3.0}], ids=["plain", "root", "clipped"]
)
def test_keeps_the_contract(options):
    check_importance_estimator(ClippedSurprisalImportance(**options))


def test_equals_numbers_worked_by_hand():
    torch.testing.assert_close(scores(), torch.tensor([[0, 0, LN2, 3 * LN2, 0]]))


def test_power_is_applied_after_the_clip():
    # min(ln 2, 1) ** 2 = 0.480453 and min(ln 8, 1) ** 2 = 1
    expected = torch.tensor([[0, 0, 0.480453, 1.0, 0]])
    torch.testing.assert_close(scores(power=2.0, clip=1.0), expected)


def test_a_token_that_the_reference_rules_out_counts_as_much_as_the_clip():
    impossible = torch.tensor([[-torch.inf, -1.0]])
    torch.testing.assert_close(scores(impossible, clip=4.0), torch.tensor([[4.0, 1.0]]))


def test_a_log_prob_rounded_above_zero_scores_zero():
    assert scores(torch.tensor([[1e-7]]), power=0.5).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("options", "named"), [({"power": 0.0}, "power=0.0"), ({"clip": -1.0}, "clip=-1.0")]
)
def test_arguments_out_of_range_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        ClippedSurprisalImportance(**options)
