"""The training objective: importance weights and a weighted sum of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from lit_tidpo.devices.deferred_checks import DeferredChecks
from lit_tidpo.errors import InputError, NonFiniteError, check_choice, numbers_of
from lit_tidpo.functional.importance import Scale, scale_weights
from lit_tidpo.importance.base import ImportanceEstimator, check_estimator, checked_scores
from lit_tidpo.losses.base import LossComponent, LossContext, check_loss, checked_loss
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.models.models import Models
from lit_tidpo.models.needs import FROM_THE_DATA, FROM_THE_RUN, find, models_of
from lit_tidpo.schedules import Scalar, Schedule, at, is_scheduled, value_at
from lit_tidpo.structures import Prediction, ResponseBatch, Results

_LOG_RATIOS = frozenset({"reference.logps"})


@dataclass
class ObjectiveValues:
    """What the objective makes of a batch.

    Attributes:
        loss: Weighted sum of the losses, times the pair's own weight if the data have one, ``[B]``,
            inside the graph.
        losses: Each loss by name, unweighted, ``[B]`` each.
        quantities: What losses log of their own, as ``NAME/QUANTITY``, ``[B]`` each.
        context: What the losses saw: results by role.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    quantities: dict[str, Tensor]
    context: LossContext

    @property
    def weights(self) -> Tensor | None:
        """Importance weights of all rows, ``[N, T]``, or None where no loss asks."""
        return self.context.responses.get("weights")


class Objective:
    """Asks the models once for what all components need together, and adds the losses up.

    Args:
        importance: Scores the tokens.
        scale: What is 1 of the weights that scores become, see
            :func:`lit_tidpo.functional.scale_weights`.
        losses: Losses by name.
        loss_weights: Factor of each loss, its own where absent; at 0 it computes nothing.
        models: Names of the models that there are besides policy and reference.

    Raises:
        InputError: If a name or a need is unknown, or nothing is left to train on.
    """

    def __init__(
        self,
        importance: ImportanceEstimator,
        scale: Scale,
        losses: Mapping[str, LossComponent],
        loss_weights: Mapping[str, Scalar],
        models: tuple[str, ...] = (),
    ) -> None:
        unknown = sorted(loss_weights.keys() - losses.keys())
        if unknown:
            raise InputError(f"loss_weights names {unknown}; the losses are {sorted(losses)}")
        bad = {
            name: weight
            for name, weight in loss_weights.items()
            if not all(isfinite(number) and number >= 0 for number in numbers_of(weight))
        }
        if bad:
            raise InputError(f"loss_weights={bad}: expected finite numbers, 0 or more")
        check_choice("weight_scale", scale, Scale)
        self.importance = importance
        self.scale = scale
        self.factors = {
            name: loss_weights.get(name, part.default_weight) for name, part in losses.items()
        }
        self.losses = {name: part for name, part in losses.items() if self.factors[name] != 0}
        if not self.losses:
            raise InputError(f"every loss has the weight 0: {self.factors}; give one a weight")
        for name, loss in self.losses.items():
            check_loss(name, loss, models)
        check_estimator(importance, models)

    def check_single_responses(self) -> None:
        """Refuse losses that compare the responses of a prompt, where each has but one.

        Raises:
            InputError: Naming one, and those of single responses that there are.
        """
        for name, loss in self.losses.items():
            alone = "labels" in loss.needs or loss.unit == "batch"
            if not alone or isinstance(loss, PairLoss):
                raise InputError(
                    f"loss {name!r} compares the responses of a prompt, but the data hold single "
                    "responses with a label: train on them with the losses kto or bco, or put a "
                    "good and a bad response to the same prompt into one row, as 'chosen' and "
                    "'rejected'"
                )

    @cached_property
    def needs(self) -> frozenset[str]:
        """What the losses need together."""
        return frozenset[str]().union(*(part.needs for part in self.losses.values()))

    @cached_property
    def importance_needs(self) -> frozenset[str]:
        """What the estimator needs; nothing where no loss asks for weights."""
        return self.importance.needs if "weights" in self.needs else frozenset()

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that a component asks for something."""
        return models_of(self.needs | self.importance.needs)

    @cached_property
    def is_scheduled(self) -> bool:
        """Whether a number of a component, or the weight of a loss, changes along the run."""
        parts = (self.importance, *self.losses.values())
        weights = self.factors.values()
        return any(map(is_scheduled, parts)) or any(isinstance(w, Schedule) for w in weights)

    @cached_property
    def beta(self) -> Scalar:
        """Inverse temperature that rewards are reported in: that of the first loss with one."""
        betas = (getattr(loss, "beta", None) for loss in self.losses.values())
        return next((beta for beta in betas if beta is not None), 1.0)

    def evaluate(
        self,
        models: Models,
        batch: ResponseBatch,
        anchors: ResponseBatch | None = None,
        known: Mapping[str, Tensor] | None = None,
        step: int = 0,
        share: float | None = None,
    ) -> ObjectiveValues:
        """Compute the loss of each prompt.

        Args:
            models: The models.
            batch: Rows of the data.
            anchors: Sampled rows with the same prompts, where a loss asks for them.
            known: ``weights`` from an earlier step or pass, ``[N, T]``, and their ``scores`` where
                they are known; None computes them.
            step: Optimizer step, from 0.
            share: Share of the run that is done; None where its end is not known.

        Returns:
            Losses and what they saw.

        Raises:
            InputError: If a component returns what it must not.
            NonFiniteError: If scores or a loss are NaN or infinite.
        """
        asked = self.needs if known is not None else self.needs | self.importance_needs
        requests = [(batch, asked | _log_ratios(models))]
        if anchors is not None:
            requests.append((anchors, _log_ratios(models)))
        responses, *rest = self.ask(models, *requests)
        responses.checks = checks = DeferredChecks()
        if known is not None:
            responses |= known
        elif "weights" in self.needs:
            self.weigh(responses, share)
        others = self._mismatched(models, batch) if "mismatched" in self.needs else None
        context = LossContext(responses, rest[0] if rest else None, step, share, others)
        losses, quantities = {}, {}
        for name, part in self.losses.items():
            found = checked_loss(name, at(part, share), context)
            losses[name] = found.values.expand(batch.size)
            for key, value in found.quantities.items():
                quantities[f"{name}/{key}"] = value.detach().expand(batch.size)
            checks.expect(losses[name].detach().isfinite().all(), _not_finite(name, losses, batch))
        checks.settle()
        total = sum(value_at(self.factors[name], share) * loss for name, loss in losses.items())
        assert isinstance(total, Tensor)
        if batch.pair_weights is not None:
            total = batch.pair_weights.to(total) * total
        return ObjectiveValues(total, losses, quantities, context)

    def _mismatched(self, models: Models, batch: ResponseBatch) -> Results:
        with torch.no_grad():
            return self.ask(models, (batch.mismatched(), _log_ratios(models)))[0]

    def log_ratios(self, models: Models, batch: ResponseBatch) -> LossContext:
        """Log-probs of policy and reference alone, by role; see :meth:`evaluate`."""
        return LossContext(self.ask(models, (batch, _log_ratios(models)))[0])

    def explain(
        self,
        models: Models,
        batch: ResponseBatch,
        known: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """Per-token results of a batch, weights always among them, detached.

        Args:
            models: The models.
            batch: Rows of any roles.
            known: Their ``weights`` and ``scores``; None computes them.

        Returns:
            The batch and every number per token that was computed of it.
        """
        more = _log_ratios(models) | ({"reference.kl"} if "reference" in models.others else set())
        needs = more if known is not None else self.importance.needs | more
        (results,) = self.ask(models, (batch, needs))
        if known is not None:
            results |= known
        else:
            self.weigh(results)
        values = {
            need: value.detach()
            for need, value in results.items()
            if need == "scores" or find(need).shape == "[N, T]"
        }
        return Prediction(batch, values)

    def ask(self, models: Models, *requests: tuple[ResponseBatch, frozenset[str]]) -> list[Results]:
        """What is needed of batches, from the models and from the data.

        Args:
            models: The models.
            requests: Batches, each with what is needed of it.

        Raises:
            InputError: If the data do not have it.
        """
        apart = set(FROM_THE_DATA) | set(FROM_THE_RUN)
        found = models.run([(batch, needs - apart) for batch, needs in requests])
        for (batch, needs), results in zip(requests, found, strict=True):
            for need in sorted(needs & set(FROM_THE_DATA)):
                value = getattr(batch, need)
                if value is None:
                    raise InputError(
                        f"{self._asking(need)} needs {need!r}, {find(need).words}, but the rows "
                        f"{batch.index[:8].tolist()} have none: give all rows {find(need).given}, "
                        "or choose another component"
                    )
                results[need] = value
        return found

    def _asking(self, need: str) -> str:
        names = (f"loss {name!r}" for name, part in self.losses.items() if need in part.needs)
        return next(names, "importance")

    def weigh(self, results: Results, share: float | None = None) -> None:
        """Add the ``weights`` that the estimator's scores become, ``[N, T]``, and the ``scores``.

        Of an estimator that is made of others, ``scores`` are those of the first one inside.

        Args:
            results: What the estimator needs.
            share: Share of the run that is done, which its schedules go by; None is its end.
        """
        scores = checked_scores(at(self.importance, share), results)
        results.setdefault("scores", scores.detach())
        results["weights"] = scale_weights(scores, results.mask, self.scale)


def _log_ratios(models: Models) -> frozenset[str]:
    """What rewards are made of, where there is a reference."""
    return _LOG_RATIOS if "reference" in models.others else frozenset()


def _not_finite(
    name: str, losses: Mapping[str, Tensor], batch: ResponseBatch
) -> Callable[[], NonFiniteError]:
    def error() -> NonFiniteError:
        pairs = batch.index[~losses[name].isfinite()].tolist()
        return NonFiniteError(
            f"loss {name!r} is NaN or infinite for the pairs {pairs} of the data set: lower the "
            "learning rate, or set model.non_finite=skip to leave such steps out"
        )

    return error
