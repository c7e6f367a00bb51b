"""What a loss implements, and what it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_tidpo.errors import InputError, check_choice
from lit_tidpo.models.needs import check_needs
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
        mismatched: What was computed for the rows with each other's prompts, if a loss asks.

    Attributes:
        responses: All rows of the data together; ``responses.batch.by_prompt`` makes tables.
        mismatched: The same rows with each other's prompts, detached, or None.
    """

    def __init__(
        self,
        responses: Results,
        anchors: Results | None = None,
        step: int = 0,
        share: float | None = None,
        mismatched: Results | None = None,
    ) -> None:
        super().__init__({role: responses.of_role(role) for role in responses.batch.roles})
        if anchors is not None:
            self |= {role: anchors.of_role(role) for role in anchors.batch.roles}
        self.responses = responses
        self.step = step
        self.share = share
        self.mismatched = mismatched

    def __missing__(self, role: str) -> Results:
        hint = ""
        if role == "anchor":
            hint = ": a loss that wants anchors has 'anchor' among its needs"
        elif role in ("chosen", "rejected"):
            hint = ": a loss of groups says unit = 'group', and takes context.responses"
        raise InputError(f"no responses of the role {role!r}; the batch has {sorted(self)}{hint}")

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
        alone: What becomes of it in batches of one prompt, where that is another loss: the run
            then warns.
    """

    default_weight: float = 1.0
    unit: Unit = "pair"
    quantities: tuple[str, ...] = ()
    alone: str = ""

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


def check_loss(name: str, loss: LossComponent, models: Iterable[str] | None = None) -> None:
    """Refuse a loss that does not keep its contract.

    Args:
        name: Its name in the objective.
        loss: The loss.
        models: Names of the models that there are besides policy and reference; None takes any.

    Raises:
        InputError: Naming what does not hold.
    """
    check_needs(f"loss {name!r}", loss.needs, models)
    check_choice(f"{type(loss).__name__}.unit", loss.unit, Unit)
    if isinstance(loss.quantities, str):
        raise InputError(
            f"loss {name!r} has quantities={loss.quantities!r}: expected a tuple of names, "
            f"({loss.quantities!r},)"
        )


def checked_loss(name: str, loss: LossComponent, context: LossContext) -> LossValues:
    """What a loss returns, checked.

    Args:
        name: Its name in the objective.
        loss: The loss.
        context: What it sees.

    Returns:
        Values, ``[B]``, or ``[]`` where the unit allows it, and the quantities that it declares.

    Raises:
        InputError: If that is something else, or has no graph where the policy has one.
    """
    found = loss.loss(context)
    found = LossValues(found) if isinstance(found, Tensor) else found
    if not isinstance(found, LossValues):
        raise InputError(
            f"loss {name!r} returns a {type(found).__name__}; expected a tensor, or LossValues"
        )
    size = context.responses.batch.size
    shapes = [(size,), ()] if loss.unit == "batch" else [(size,)]
    if tuple(found.values.shape) not in shapes:
        raise InputError(
            f"loss {name!r} has the shape {tuple(found.values.shape)}; expected ({size},), one "
            f"value for each {'pair' if loss.unit == 'pair' else 'prompt'}"
        )
    if context.responses["policy.logps"].requires_grad and not found.values.requires_grad:
        raise InputError(
            f"loss {name!r} has no graph, so that it would train nothing: compute it from the "
            "policy's values, without detach()"
        )
    _check_quantities(name, loss, found.quantities, size)
    return found


def _check_quantities(
    name: str, loss: LossComponent, found: Mapping[str, Tensor], size: int
) -> None:
    if found.keys() != set(loss.quantities):
        raise InputError(
            f"loss {name!r} logs {sorted(found)}, but its class attribute quantities names "
            f"{sorted(loss.quantities)}: expected the same, so that all ranks know of them"
        )
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.shape not in ((), (size,)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"loss {name!r} logs {key!r} as {shape}; expected a tensor of one value, or of "
                f"{size}, one for each prompt"
            )
