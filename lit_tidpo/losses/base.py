"""What a loss implements, and what it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.plugins.component import Component
from lit_tidpo.structures import Results

Unit = Literal["pair", "group", "batch"]


class LossContext(dict[str, Results]):
    """What a loss sees: what was computed, by role, and where the run stands.

    ``context["chosen"]`` and ``context["rejected"]`` of pairs, ``context["anchor"]`` where asked
    for, or whatever roles the responses of a prompt have.

    Args:
        responses: What was computed for all rows of the batch.
        anchors: What was computed for the anchors' rows, if there are any.
        step: Optimizer step, from 0.
        share: Share of the run that is done, 0 to 1; None where its end is not known.

    Attributes:
        responses: All rows of the data together; ``responses.batch.by_prompt`` makes tables.
    """

    def __init__(
        self,
        responses: Results,
        anchors: Results | None = None,
        step: int = 0,
        share: float | None = None,
    ) -> None:
        super().__init__({role: responses.of_role(role) for role in responses.batch.roles})
        if anchors is not None:
            self |= {role: anchors.of_role(role) for role in anchors.batch.roles}
        self.responses = responses
        self.step = step
        self.share = share

    def __missing__(self, role: str) -> Results:
        raise InputError(f"no responses of the role {role!r}: the batch has {sorted(self)}")

    @property
    def counted(self) -> Tensor:
        """False for prompts that only fill up a distributed batch, ``[B]`` bool."""
        return self.responses.batch.counted


@dataclass
class LossValues:
    """A loss with quantities of its own, which are logged as ``NAME/QUANTITY``.

    Attributes:
        values: The loss, as :meth:`LossComponent.loss` may also return it alone.
        quantities: By name, one value for each prompt, ``[B]``, or one for the batch, ``[]``.
    """

    values: Tensor
    quantities: Mapping[str, Tensor] = field(default_factory=dict)


class LossComponent(Component, ABC):
    """One term of the training objective.

    A subclass keeps each constructor argument as an attribute of the same name, declares ``needs``,
    and implements :meth:`loss`. One that has an inverse temperature calls it ``beta``: rewards are
    logged in units of the first loss that has one.

    Attributes:
        default_weight: Factor in the objective where ``loss_weights`` names none.
        unit: What a value of the loss is about: a ``pair`` of the roles chosen and rejected, a
            ``group`` of one or more responses of a prompt, or the ``batch``, whose prompts then
            count for each other.
        quantities: Names of the quantities that it logs.
    """

    default_weight: float = 1.0
    unit: Unit = "pair"
    quantities: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """Needs of :mod:`lit_tidpo.models.needs`; a class attribute where no argument decides."""
        return frozenset()

    @abstractmethod
    def loss(self, context: LossContext) -> Tensor | LossValues:
        """Compute the loss.

        Args:
            context: Results by role, and where the run stands.

        Returns:
            One value for each prompt, ``[B]``, inside the graph; of the unit ``batch`` one for all
            will do, ``[]``. The caller averages over prompts and weighs it.
        """
