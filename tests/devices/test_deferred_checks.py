"""One wait for several checks, and the error of the first that does not hold."""

from __future__ import annotations

import pytest
import torch
from device_waits import DeviceWaits

from lit_tidpo.devices.deferred_checks import DeferredChecks


def test_the_first_check_that_does_not_hold_is_told_after_one_wait():
    checks, made = DeferredChecks(), []

    def make(name):
        return lambda: made.append(name) or ValueError(name)

    values = torch.tensor([1.0, -1.0])
    with DeviceWaits() as waits:
        waits.put(values)
        checks.expect((values < 2).all(), make("below 2"))
        checks.expect((values > 0).all(), make("above 0"))
        checks.expect((values > 1).all(), ValueError("above 1"))
        with pytest.raises(ValueError, match="above 0"):
            checks.settle()
    assert waits.own.total() == 1
    assert made == ["above 0"]
    checks.settle()  # nothing is told twice


def test_without_checks_nobody_waits():
    DeferredChecks().settle()
