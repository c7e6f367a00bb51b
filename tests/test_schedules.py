"""Numbers that change along the run."""

from __future__ import annotations

import math

import pytest
from torch import nn

from lit_tidpo.errors import InputError
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.exo_pair_loss import EXOPairLoss
from lit_tidpo.plugins.component import Component
from lit_tidpo.plugins.hparams import as_plain_data
from lit_tidpo.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PiecewiseSchedule,
    at,
    is_scheduled,
    value_at,
)

POINTS = [[0.25, 1.0], [0.5, 2.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("schedule", "expected"),  # at the shares 0, 1/4, 1/2, 3/4 and 1
    [
        (ConstantSchedule(0.3), [0.3] * 5),
        (LinearSchedule(1.0, 3.0), [1.0, 1.5, 2.0, 2.5, 3.0]),
        (LinearSchedule(3.0, 1.0, until=0.5), [3.0, 2.0, 1.0, 1.0, 1.0]),
        (CosineSchedule(1.0, 0.0), [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0]),
        (PiecewiseSchedule(POINTS), [1.0, 1.0, 2.0, 1.0, 0.0]),
    ],
)
def test_values_by_hand(schedule, expected):
    found = [schedule.value(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(min(schedule.numbers) - 1e-12 <= v <= max(schedule.numbers) for v in found)


def test_where_no_run_goes_on_it_is_the_end_s():
    assert value_at(LinearSchedule(1.0, 3.0), None) == 3.0
    assert value_at(0.5, None) == value_at(0.5, 0.1) == 0.5


class Part(Component):
    def __init__(self, number):
        self.number = number


class Whole(nn.Module, Component):
    def __init__(self, part):
        super().__init__()
        self.part = part
        self.layer = nn.Linear(1, 1)


class LearnedPart(nn.Module, Component):
    def __init__(self, number):
        super().__init__()
        self.number = number


@pytest.mark.parametrize("kind", [Part, LearnedPart])
def test_a_component_is_handed_out_with_numbers_in_the_places_of_schedules(kind):
    whole = Whole(kind(LinearSchedule(0.0, 1.0)))
    found = at(whole, 0.25)
    assert found is not whole
    assert found.part.number == 0.25
    assert isinstance(whole.part.number, LinearSchedule)
    assert found.layer is whole.layer
    assert is_scheduled(whole)


def test_a_component_without_a_schedule_is_handed_out_itself():
    whole = Whole(Part(0.5))
    assert at(whole, 0.25) is whole
    assert not is_scheduled(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSchedule(0.0, math.inf), "end=inf: expected a finite number"),
        (lambda: LinearSchedule(0.0, 1.0, until=0.0), r"until=0\.0: expected a share"),
        (lambda: PiecewiseSchedule([]), r"points=\[\]: expected"),
        (lambda: PiecewiseSchedule([[0.5, 1.0], [0.5, 2.0]]), "at rising shares"),
        (lambda: PiecewiseSchedule([[0.5, 1.0], [1.5, 2.0]]), "from 0 to 1"),
        (lambda: PiecewiseSchedule([[0.5]]), r"points=\[\[0\.5\]\]: expected"),
        (lambda: DPOLoss(beta=LinearSchedule(0.1, 0.0)), r"beta=0\.0: expected .* above 0"),
        (lambda: EXOPairLoss(label_smoothing=LinearSchedule(0.0, 0.1)), "label_smoothing="),
    ],
)
def test_what_leaves_its_range_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_it_is_stored_as_plain_data():
    assert as_plain_data(DPOLoss(beta=LinearSchedule(0.1, 0.5)))["init_args"]["beta"] == {
        "class_path": "lit_tidpo.schedules.LinearSchedule",
        "init_args": {"start": 0.1, "end": 0.5, "until": 1.0},
    }
