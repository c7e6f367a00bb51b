"""The training objective: importance weights and a weighted sum of loss components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from lit_tidpo.contracts import ImportanceEstimator, LossComponent, check_needs
from lit_tidpo.errors import InputError, NonFiniteError
from lit_tidpo.importance.weighting import Weighting
from lit_tidpo.models.forward import Computation, run_batches
from lit_tidpo.models.reference import Reference
from lit_tidpo.structures import Forward, ModelTrace, Prediction, ResponseBatch, TokenScores

_LOG_RATIOS = frozenset({"reference.logps"})


@dataclass
class Outcome:
    """What the objective makes of a batch.

    Attributes:
        loss: Weighted sum of the components, ``[B]``, inside the graph.
        components: Loss of each component by name, unweighted, ``[B]`` each.
        scores: Per-token results by role.
        weights: Importance weights of all rows, ``[N, T]``, or None where no component asks.
    """

    loss: Tensor
    components: dict[str, Tensor]
    scores: dict[str, TokenScores]
    weights: Tensor | None


class Objective:
    """Runs the models once for what all components need together, and adds the components up.

    Args:
        importance: Scores the tokens.
        weighting: Turns scores into weights.
        losses: Components by name.
        loss_weights: Factor of each component, its own where absent; at 0 it computes nothing.
        beta: Inverse temperature of the implicit reward, per nat.
        computation: How rows go through the models.

    Raises:
        InputError: If a name or a need is unknown, or nothing is left to train on.
    """

    def __init__(
        self,
        importance: ImportanceEstimator,
        weighting: Weighting,
        losses: Mapping[str, LossComponent],
        loss_weights: Mapping[str, float],
        beta: float,
        computation: Computation = Computation(),  # noqa: B008  (frozen)
    ) -> None:
        unknown = sorted(loss_weights.keys() - losses.keys())
        if unknown:
            raise InputError(f"loss_weights names {unknown}; the losses are {sorted(losses)}")
        endless = {name: factor for name, factor in loss_weights.items() if not isfinite(factor)}
        if endless:
            raise InputError(f"loss_weights={endless}: expected finite numbers")
        if not (beta > 0 and isfinite(beta)):
            raise InputError(f"beta={beta}: expected a finite number above 0")
        self.importance = importance
        self.weighting = weighting
        self.beta = beta
        self.computation = computation
        self.factors = {
            name: loss_weights.get(name, part.default_weight) for name, part in losses.items()
        }
        self.losses = {name: part for name, part in losses.items() if self.factors[name] != 0}
        if not self.losses:
            raise InputError(f"every loss has the weight 0: {self.factors}; give one a weight")
        self._check_components()

    def _check_components(self) -> None:
        for name, component in self.losses.items():
            check_needs(f"loss {name!r}", component.needs)
        label = f"importance {type(self.importance).__name__}"
        check_needs(label, self.importance.needs)
        unavailable = self.importance.needs & {"weights", "anchor"}
        if unavailable:
            raise InputError(f"{label} needs {sorted(unavailable)}, which only a loss can ask for")

    @property
    def needs(self) -> frozenset[str]:
        """What the components need together; rewards always need the reference's log-probs."""
        return _LOG_RATIOS.union(*(part.needs for part in self.losses.values()))

    def importance_needs(self) -> frozenset[str]:
        """What the estimator needs; nothing where no component asks for weights."""
        return self.importance.needs if "weights" in self.needs else frozenset()

    def evaluate(
        self,
        policy: nn.Module,
        reference: Reference,
        batch: ResponseBatch,
        anchors: ResponseBatch | None = None,
        weights: Tensor | None = None,
        reference_logps: Tensor | None = None,
    ) -> Outcome:
        """Compute the loss of each pair.

        Args:
            policy: The policy.
            reference: What it is compared with.
            batch: Rows of the roles ``chosen`` and ``rejected``.
            anchors: Rows of the role ``anchor``, where a component asks for them.
            weights: Weights from an earlier step, ``[N, T]``; None computes them.
            reference_logps: The reference's log-probs of ``batch``, ``[N, T]``, if they are known;
                None runs the reference.

        Returns:
            Losses and per-token results.

        Raises:
            NonFiniteError: If a loss is NaN or infinite.
        """
        asked = self.needs if weights is not None else self.needs | self.importance_needs()
        forward, *rest = self.run(policy, reference, batch, asked, reference_logps, anchors)
        raw_scores = None
        if weights is None and "weights" in self.needs:
            raw_scores, weights = self.weigh(forward)
        scores = _by_role(forward, weights, raw_scores)
        for anchor in rest:
            scores |= _by_role(anchor)
        components = {name: part.loss(scores, self.beta) for name, part in self.losses.items()}
        _check_finite(components, batch)
        total = sum(self.factors[name] * loss for name, loss in components.items())
        assert isinstance(total, Tensor)
        return Outcome(total, components, scores, weights)

    def log_ratios(
        self,
        policy: nn.Module,
        reference: Reference,
        batch: ResponseBatch,
        reference_logps: Tensor | None = None,
    ) -> dict[str, TokenScores]:
        """Log-probs of policy and reference alone, by role; see :meth:`evaluate`."""
        return _by_role(self.run(policy, reference, batch, _LOG_RATIOS, reference_logps)[0])

    def explain(self, policy: nn.Module, reference: Reference, batch: ResponseBatch) -> Prediction:
        """Per-token results of a batch, weights always among them, detached.

        Args:
            policy: The policy.
            reference: What it is compared with.
            batch: Rows of any roles.

        Returns:
            The batch and its results by role.
        """
        asked = self.importance.needs | _LOG_RATIOS | {"kl"}
        forward = self.run(policy, reference, batch, asked)[0]
        raw_scores, weights = self.weigh(forward)
        forward.policy.logps = forward.policy.logps.detach()
        forward.kl = None if forward.kl is None else forward.kl.detach()
        return Prediction(batch, _by_role(forward, weights, raw_scores))

    def run(
        self,
        policy: nn.Module,
        reference: Reference,
        batch: ResponseBatch,
        needs: frozenset[str],
        reference_logps: Tensor | None = None,
        anchors: ResponseBatch | None = None,
    ) -> list[Forward]:
        """Run the models, sparing the reference where its log-probs are known and suffice.

        Args:
            policy: The policy.
            reference: What it is compared with.
            batch: Rows to run.
            needs: Keys of :data:`lit_tidpo.contracts.NEEDS`.
            reference_logps: The reference's log-probs of the batch, ``[N, T]``, or None.
            anchors: Rows with the same prompts, of which log-ratios alone are needed, or None.

        Returns:
            The forward of the batch, and that of the anchors if there are any.
        """
        requests = [(batch, needs if reference_logps is None else needs - _LOG_RATIOS)]
        if anchors is not None:
            requests.append((anchors, _LOG_RATIOS))
        forwards = run_batches(policy, reference, requests, self.computation)
        if reference_logps is not None and forwards[0].reference is None:
            forwards[0].reference = ModelTrace(reference_logps)
        return forwards

    def weigh(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """Raw scores and weights of a forward, detached, ``[N, T]`` each."""
        raw_scores = self.importance.scores(forward).detach()
        return raw_scores, self.weighting.weights(raw_scores, forward.batch)


def _by_role(
    forward: Forward, weights: Tensor | None = None, raw_scores: Tensor | None = None
) -> dict[str, TokenScores]:
    """Cut a forward into the results of each role."""
    reference = None if forward.reference is None else forward.reference.logps.detach()

    def cut(rows: slice) -> TokenScores:
        return TokenScores(
            mask=forward.batch.response_mask[rows],
            policy_logps=forward.policy.logps[rows],
            reference_logps=None if reference is None else reference[rows],
            kl=None if forward.kl is None else forward.kl[rows],
            weights=None if weights is None else weights[rows],
            raw_scores=None if raw_scores is None else raw_scores[rows],
        )

    return {role: cut(forward.batch.rows(role)) for role in forward.batch.roles}


def _check_finite(components: Mapping[str, Tensor], batch: ResponseBatch) -> None:
    for name, loss in components.items():
        if loss.shape != (batch.size,):
            raise InputError(
                f"loss {name!r} has the shape {tuple(loss.shape)}; expected ({batch.size},), one "
                "value for each pair"
            )
    finite = torch.stack([loss.detach().isfinite() for loss in components.values()])
    if bool(finite.all()):
        return
    for name, good in zip(components, finite, strict=True):
        if not bool(good.all()):
            raise NonFiniteError(
                f"loss {name!r} is NaN or infinite for the pairs {batch.index[~good].tolist()} of "
                "the data set: lower the learning rate, or set model.non_finite=skip to leave such "
                "steps out"
            )
