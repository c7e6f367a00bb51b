"""Numbers that change along the run, wherever a component takes a number.

A component whose argument is a :data:`Scalar` may be given a schedule in its place. It never sees
it: :func:`at` hands out the component with the values of the step, before it is called.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from lit_tidpo.errors import InputError, check_finite
from lit_tidpo.plugins.component import Component

ComponentT = TypeVar("ComponentT", bound=Component)


class Schedule(Component, ABC):
    """A number as a function of the share of the run that is done."""

    @property
    @abstractmethod
    def numbers(self) -> tuple[float, ...]:
        """The numbers that it runs between, which have to be in the argument's range."""

    @abstractmethod
    def value(self, share: float) -> float:
        """The number at a share of the run, 0 to 1."""


class ConstantSchedule(Schedule):
    """The same number all along.

    Args:
        number: The number.
    """

    def __init__(self, number: float) -> None:
        check_finite("number", number)
        self.number = number

    @property
    def numbers(self) -> tuple[float, ...]:
        """The number alone."""
        return (self.number,)

    def value(self, share: float) -> float:
        """``number``."""
        return self.number


class LinearSchedule(Schedule):
    """A straight line from the start of the run to a share of it, and level from there.

    Args:
        start: Number at the first step.
        end: Number from ``until`` on.
        until: Share of the run at which the end is reached, above 0 to 1.

    Example:
        >>> LinearSchedule(1.0, 2.0, until=0.5).value(0.25)
        1.5
    """

    def __init__(self, start: float, end: float, until: float = 1.0) -> None:
        check_finite("start", start)
        check_finite("end", end)
        if not 0 < until <= 1:
            raise InputError(f"until={until}: expected a share of the run, above 0 to 1")
        self.start = start
        self.end = end
        self.until = until

    @property
    def numbers(self) -> tuple[float, ...]:
        """Start and end."""
        return (self.start, self.end)

    def value(self, share: float) -> float:
        """``start + (end - start) min(1, share / until)``."""
        return self.start + (self.end - self.start) * self._progress(min(1.0, share / self.until))

    def _progress(self, share: float) -> float:
        return share


class CosineSchedule(LinearSchedule):
    """Half a cosine from the start of the run to a share of it, and level from there.

    Args:
        start: Number at the first step.
        end: Number from ``until`` on.
        until: Share of the run at which the end is reached, above 0 to 1.
    """

    def _progress(self, share: float) -> float:
        return (1 - math.cos(math.pi * share)) / 2


class PiecewiseSchedule(Schedule):
    """Straight lines between points, level before the first and after the last.

    Args:
        points: ``[share, number]`` each, at rising shares of the run, 0 to 1.

    Example:
        >>> PiecewiseSchedule([[0.0, 1.0], [0.5, 2.0], [1.0, 0.0]]).value(0.75)
        1.0
    """

    def __init__(self, points: list[list[float]]) -> None:
        check_finite("points", points)
        sound = bool(points) and all(len(point) == 2 for point in points)
        shares = [point[0] for point in points]
        rising = all(first < second for first, second in pairwise(shares))
        if not sound or not rising or not 0 <= shares[0] <= shares[-1] <= 1:
            raise InputError(
                f"points={points}: expected [share of the run, number] each, at rising shares from "
                "0 to 1"
            )
        self.points = points

    @property
    def numbers(self) -> tuple[float, ...]:
        """Those of the points."""
        return tuple(number for _, number in self.points)

    def value(self, share: float) -> float:
        """Between the points before and after."""
        for (left, low), (right, high) in pairwise(self.points):
            if left <= share <= right:
                return low + (high - low) * (share - left) / (right - left)
        return self.points[0][1] if share < self.points[0][0] else self.points[-1][1]


if TYPE_CHECKING:
    Scalar = float  # what a component finds in its attribute when it is called
else:
    Scalar = float | Schedule
"""A number, or a schedule of numbers."""


def value_at(scalar: Scalar | Schedule, share: float | None) -> float:
    """The number of a scalar.

    Args:
        scalar: A number or a schedule.
        share: Share of the run that is done; None, where no run is going on, is its end.
    """
    if not isinstance(scalar, Schedule):
        return scalar
    return scalar.value(1.0 if share is None else share)


def at(component: ComponentT, share: float | None) -> ComponentT:
    """A component as it is at some point of the run.

    Args:
        component: Any, with schedules among its attributes, or those of components that it holds.
        share: Share of the run that is done; None, where no run is going on, is its end.

    Returns:
        Itself if it holds no schedule; otherwise a copy with numbers in their places, which shares
        everything else.
    """
    own = _changed(vars(component), share)
    parts = _changed(vars(component).get("_modules", {}), share)
    if not own and not parts:
        return component
    found = copy.copy(component)
    vars(found).update(own)
    if parts:
        vars(found)["_modules"] = {**vars(component)["_modules"], **parts}
    return found


def is_scheduled(component: Component) -> bool:
    """Whether a component, or one that it holds, has a schedule."""
    return at(component, 0.0) is not component


def _changed(held: dict[str, Any], share: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in held.items():
        if isinstance(value, Schedule):
            found[name] = value_at(value, share)
        elif isinstance(value, Component) and (part := at(value, share)) is not value:
            found[name] = part
    return found
