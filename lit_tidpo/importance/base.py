"""What an importance estimator implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from lit_tidpo.devices.deferred_checks import DeferredChecks
from lit_tidpo.errors import InputError, NonFiniteError, PluginError, check_choice
from lit_tidpo.models.needs import FROM_THE_RUN, check_needs, find, models_of
from lit_tidpo.plugins.component import Component
from lit_tidpo.structures import Results

LooksAt = Literal["row", "group"]


class ImportanceEstimator(Component, ABC):
    """Scores the tokens of each row by their importance (TI-DPO's ``I``, Eq. 6).

    A subclass keeps each constructor argument as an attribute of the same name, declares ``needs``,
    implements :meth:`scores`, and says what else it is where it is not the usual. Scaling is not
    its business. Estimators that hold others derive from :class:`CombinedImportance`.

    Attributes:
        looks_at: ``row``: scores of a row hang on that row alone; ``group``: on the other responses
            of its prompt, too.
        signed: Whether scores may be negative.
        learned: Whether scores are trained with the policy, and not data: they keep their graph.
            The estimator is then an ``nn.Module``, too.
        spans_prompt: Whether its scores hang on gradients or attention of prompt tokens, so that a
            prompt cannot be computed once for several responses.
    """

    looks_at: LooksAt = "row"
    signed: bool = False
    learned: bool = False
    spans_prompt: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Needs of :mod:`lit_tidpo.models.needs`; a class attribute where no argument decides."""
        return frozenset()

    @property
    def parts(self) -> tuple[ImportanceEstimator, ...]:
        """The estimators among its attributes, and in lists of them."""
        held = [*vars(self).values(), *vars(self).get("_modules", {}).values()]
        listed = (each if isinstance(each, list) else [each] for each in held)
        return tuple(
            each for some in listed for each in some if isinstance(each, ImportanceEstimator)
        )

    @property
    def cost(self) -> str:
        """What it costs at the most, beyond the policy's own pass, by its needs.

        Forwards of other models (plain DPO has the reference's in any case), backwards to the input
        embeddings, and what :class:`~lit_tidpo.models.needs.Need` calls its ``extra``.
        """
        forwards = len(models_of(self.needs) - {"policy"})
        backwards = sum(
            len({need.rpartition(".")[0] for need in each.own_needs if find(need).attributed})
            for each in walk(self)
        )
        counted = [
            f"{count} {name}{'s' if count > 1 else ''}"
            for count, name in ((forwards, "forward"), (backwards, "backward"))
            if count
        ]
        extra = sorted({find(need).extra for need in self.needs} - {""})
        return ", ".join([*counted, *extra]) or "free"

    @property
    def own_needs(self) -> frozenset[str]:
        """What it needs beyond what its parts do."""
        return self.needs.difference(*(part.needs for part in self.parts))

    @abstractmethod
    def scores(self, results: Results) -> Tensor:
        """Score every token.

        Runs with gradients enabled and must leave no trace: no ``.grad``, mode, RNG or cache
        setting changes. Unless it is ``learned``, the result is used as data.

        Args:
            results: What ``needs`` asked for, by need; the policy's are inside the graph.

        Returns:
            Scores, not negative unless ``signed``, ``[N, T]``. Values off the response are ignored.
        """


class CombinedImportance(ImportanceEstimator):
    """An estimator made of others: it needs what they need, and is what they are.

    They are its attributes. A subclass takes their scores by :func:`checked_scores`, and adds its
    own needs to ``super().needs`` if it has any.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What the parts need together."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def looks_at(self) -> LooksAt:  # type: ignore[override]
        """``group`` if a part looks at the other responses of a prompt."""
        return "group" if any(part.looks_at == "group" for part in self.parts) else "row"

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Whether a part is signed."""
        return any(part.signed for part in self.parts)

    @property
    def learned(self) -> bool:  # type: ignore[override]
        """Whether a part is learned."""
        return any(part.learned for part in self.parts)

    @property
    def spans_prompt(self) -> bool:  # type: ignore[override]
        """Whether a part spans the prompt."""
        return any(part.spans_prompt for part in self.parts)


def check_estimator(estimator: ImportanceEstimator, models: Iterable[str] | None = None) -> None:
    """Refuse an estimator that does not keep its contract, or what it is made of.

    Args:
        estimator: The estimator.
        models: Names of the models that there are besides policy and reference; None takes any.

    Raises:
        InputError: Naming what does not hold.
    """
    for each in walk(estimator):
        label = f"importance {type(each).__name__}"
        check_needs(label, each.needs, models)
        unavailable = sorted(each.needs & set(FROM_THE_RUN))
        if unavailable:
            raise InputError(f"{label} needs {unavailable}, which only a loss can ask for")
        check_choice(f"{type(each).__name__}.looks_at", each.looks_at, LooksAt)
        for part in each.parts:
            _check_holds(label, each, part)
        trained = isinstance(each, nn.Module) and any(
            parameter.requires_grad for parameter in each.parameters()
        )
        if trained and not each.learned:
            raise InputError(
                f"{label} has parameters to train, but its scores are data: let the class say "
                "learned = True, or freeze them"
            )
        if each.learned and not trained and not any(part.learned for part in each.parts):
            raise InputError(
                f"{label} says learned = True, but has no parameters to train: derive it from "
                "torch.nn.Module, too, and call super().__init__(), or leave learned out"
            )


def _check_holds(label: str, whole: ImportanceEstimator, part: ImportanceEstimator) -> None:
    """Refuse an estimator that does not declare what its part needs and is."""
    missing: list[str] = sorted(part.needs - whole.needs)
    missing += [
        f"{name} = {getattr(part, name)!r}"
        for name in ("learned", "spans_prompt", "looks_at")
        if getattr(part, name) not in (False, "row", getattr(whole, name))
    ]
    if missing:
        raise InputError(
            f"{label} holds {type(part).__name__} without declaring its {missing}: derive it from "
            "CombinedImportance, which declares what its parts do"
        )


def walk(estimator: ImportanceEstimator) -> Iterator[ImportanceEstimator]:
    """An estimator and all that it is made of."""
    yield estimator
    for part in estimator.parts:
        yield from walk(part)


def checked_scores(
    estimator: ImportanceEstimator, results: Results, mask: Tensor | None = None
) -> Tensor:
    """Scores of an estimator, in fp32, detached unless they are learned.

    Those of the first estimator that is made of no others are kept as ``results["scores"]``.

    Args:
        estimator: The estimator.
        results: What it needs.
        mask: Where scores count, ``[N, T]`` bool; None takes the response.

    Returns:
        Scores, ``[N, T]``.

    Raises:
        InputError: If they have another shape, if one that counts is negative without ``signed``,
            or if they are learned without a graph.
        NonFiniteError: If one that counts is NaN or infinite.
    """
    mask = results.mask if mask is None else mask
    name = type(estimator).__name__
    try:
        scores = estimator.scores(results)
    except (TypeError, AttributeError, LookupError) as error:
        raise PluginError(f"importance {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor):
        raise PluginError(
            f"importance scores of {name} are {type(scores).__name__}; expected a tensor"
        )
    scores = scores if estimator.learned else scores.detach()
    if scores.shape != mask.shape:
        raise InputError(
            f"importance scores of {name} have the shape {tuple(scores.shape)}; expected "
            f"{tuple(mask.shape)}, one score for each token of the batch"
        )
    scores = scores.float()
    _check_values(name, estimator.signed, scores.detach(), mask, results)
    if estimator.learned and torch.is_grad_enabled() and not scores.requires_grad:
        raise InputError(
            f"importance {name} says learned = True, but its scores have no graph, so that nothing "
            "of it would be trained: compute them from its parameters, without detach()"
        )
    if not estimator.parts:
        results.setdefault("scores", scores.detach())
    return scores


def _check_values(name: str, signed: bool, scores: Tensor, mask: Tensor, results: Results) -> None:
    """Refuse what is not finite, or negative where that is not declared, among masked scores."""
    checks = results.checks or DeferredChecks()
    finite = NonFiniteError(f"importance scores of {name} are NaN or infinite at supervised tokens")
    checks.expect((scores.isfinite() | ~mask).all(), finite)
    if not signed:
        checks.expect(
            ((scores >= 0) | ~mask).all(),
            lambda: InputError(
                f"importance scores of {name} must not be negative; the lowest is "
                f"{scores[mask].min().item()}: let the class say signed = True if that is meant"
            ),
        )
    if results.checks is None:
        checks.settle()
