"""What a plugin implements: an importance estimator, or a loss component."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.structures import Forward, TokenScores

NEEDS: Mapping[str, str] = {
    "policy.embeddings": "input embeddings of the policy's response tokens, inside the graph",
    "policy.final_logits": "the policy's logits at the last token of each row",
    "policy.label_logits": "the policy's logit of each response token",
    "policy.attentions": "attention probabilities of the policy (eager attention)",
    "policy.entropy": "entropy of the distribution that predicts each response token",
    "policy.scaled": "the policy's trace with the response's embeddings scaled; runs it once more",
    "reference.logps": "log-probs of the response tokens under the reference",
    "reference.embeddings": "the same of the reference",
    "reference.final_logits": "the reference's logits at the last token of each row",
    "reference.label_logits": "the reference's logit of each response token",
    "reference.attentions": "attention probabilities of the reference (eager attention)",
    "reference.entropy": "the same of the reference",
    "kl": "position-wise KL(reference || policy)",
    "weights": "importance weights (losses only)",
    "anchor": "a response sampled from the policy (losses only)",
}
"""Everything that can be asked for. The module computes the union of what is asked for, once."""


def check_needs(component: str, needs: frozenset[str]) -> None:
    """Refuse needs that nothing can serve.

    Args:
        component: How the message calls the component.
        needs: What it declares.

    Raises:
        InputError: If a need is not one of :data:`NEEDS`.
    """
    unknown = sorted(needs - NEEDS.keys())
    if unknown:
        raise InputError(f"{component} needs {unknown}; what can be asked for: {sorted(NEEDS)}")


class ImportanceEstimator(ABC):
    """Scores the tokens of each row by their importance (TI-DPO's ``I``, Eq. 6).

    A subclass keeps each constructor argument as an attribute of the same name, declares ``needs``,
    and implements :meth:`scores`. Mixing with a prior and scaling are not its business.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Keys of :data:`NEEDS`. A plain class attribute will do where no argument decides."""
        return frozenset()

    @abstractmethod
    def scores(self, forward: Forward) -> Tensor:
        """Score every token.

        Runs with gradients enabled and must leave no trace: no ``.grad``, mode, RNG or cache
        setting changes. The result is used as data: the caller detaches it.

        Args:
            forward: What ``needs`` asked for; the tensors of a trace are inside the graph.

        Returns:
            Non-negative scores, ``[N, T]``. Row ``n`` depends on row ``n`` alone. Values off the
            response are ignored unless the weighting spans the prompt.
        """


class LossComponent(ABC):
    """One term of the training objective.

    A subclass keeps each constructor argument as an attribute of the same name, declares ``needs``,
    and implements :meth:`loss`.
    """

    default_weight: float = 1.0
    """Factor in the objective where ``loss_weights`` names none."""

    @property
    def needs(self) -> frozenset[str]:
        """Keys of :data:`NEEDS`. A plain class attribute will do where no argument decides."""
        return frozenset()

    @abstractmethod
    def loss(self, scores: Mapping[str, TokenScores], beta: float) -> Tensor:
        """Compute the loss of each pair.

        Args:
            scores: Per-token results by role: ``chosen``, ``rejected``, and ``anchor`` where asked
                for. Fields of an anchor's scores that are not log-probs are None.
            beta: Inverse temperature of the implicit reward, per nat.

        Returns:
            Loss of each pair, ``[B]``, inside the graph. The caller averages and weighs it.
        """
