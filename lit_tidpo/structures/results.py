"""What was computed of rows, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lit_tidpo.devices.deferred_checks import DeferredChecks
from lit_tidpo.errors import InputError
from lit_tidpo.structures.batch import ResponseBatch


class Results(dict[str, Any]):
    """What was computed for some responses, by the name of the need that asked for it.

    Args:
        batch: The rows.
        values: Quantities by need (:mod:`lit_tidpo.models.needs`), row by row.
        mask: True at response tokens, ``[N, T]`` bool; None takes those of the batch.

    Attributes:
        checks: Collects what has to hold of values made of these; None checks at once.
    """

    def __init__(
        self, batch: ResponseBatch, values: Mapping[str, Any], mask: Tensor | None = None
    ) -> None:
        super().__init__(values)
        self.batch = batch
        self.checks: DeferredChecks | None = None
        self.mask = batch.response_mask if mask is None else mask

    def __missing__(self, need: str) -> Any:
        raise InputError(
            f"{need!r} was not computed, only {sorted(self)}: declare it in the component's needs"
        )

    @cached_property
    def log_ratios(self) -> Tensor:
        """Per-token log-ratios ``d_t = log pi - log ref`` in nats, zero off the response, [N, T].

        Raises:
            InputError: If the reference's log-probs were not asked for.
        """
        ratios: Tensor = self["policy.logps"] - self["reference.logps"]
        return ratios

    def of_role(self, role: str) -> Results:
        """The rows of one role, as wide as all."""
        rows = self.batch.rows(role)
        values = {
            need: tuple(each[rows] for each in value) if isinstance(value, tuple) else value[rows]
            for need, value in self.items()
            if isinstance(value, (Tensor, tuple))
        }
        return Results(self.batch.as_wide(role), values, self.mask[rows])


@dataclass
class Prediction:
    """What ``predict`` tells of a batch: its rows and their detached per-token quantities.

    Attributes:
        batch: The rows.
        values: Quantities by need, ``[N, T]`` each.
    """

    batch: ResponseBatch
    values: dict[str, Tensor]

    def of_role(self, role: str) -> Results:
        """The rows of one role."""
        return Results(self.batch, self.values).of_role(role)
