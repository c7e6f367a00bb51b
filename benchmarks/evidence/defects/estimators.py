"""What is measured: the package's estimators and their options, and baselines."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_tidpo.contracts import ImportanceEstimator
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.importance.detector_importance import DetectorImportance
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.log_ratio_importance import LogRatioImportance
from lit_tidpo.importance.random_importance import RandomImportance
from lit_tidpo.structures import Forward

PAPER = "gradient max_logit"
"""The paper's estimator (Eq. 5-6)."""


class SurprisalImportance(ImportanceEstimator):
    """``-log p`` of each token.

    Args:
        model: Under the current ``policy``, or the frozen ``reference``.
    """

    def __init__(self, model: Literal["policy", "reference"]) -> None:
        self.model = model

    @property
    def needs(self) -> frozenset[str]:
        """The reference's log-probs."""
        return frozenset({"reference.logps"})

    def scores(self, forward: Forward) -> Tensor:
        """Surprisal in nats, ``[N, T]``."""
        trace = forward.policy if self.model == "policy" else forward.reference
        assert trace is not None
        return (-trace.logps).clamp(min=0)


def estimators(detector: str, seed: int) -> dict[str, ImportanceEstimator]:
    """Estimators that are measured on every policy.

    Args:
        detector: Path of a trained detector.
        seed: Seed of the random scores.
    """
    targets = ("max_logit", "response_logp", "response_logits", "log_ratio")
    return {
        "random": RandomImportance(seed),
        **{f"gradient {target}": GradientImportance(target) for target in targets},
        "attention": AttentionImportance(),
        "attention per_query": AttentionImportance(per_query=True),
        "surprisal policy": SurprisalImportance("policy"),
        "surprisal reference": SurprisalImportance("reference"),
        "log_ratio": LogRatioImportance(),
        "detector": DetectorImportance(detector),
    }


def integrated_gradients(steps: int) -> dict[str, ImportanceEstimator]:
    """Integrated gradients of both targets, which run the model ``steps`` times more."""
    return {
        f"gradient {target} integrated": GradientImportance(
            target, norm="times_input", integration_steps=steps
        )
        for target in ("max_logit", "response_logp")
    }


def mitigations() -> dict[str, ImportanceEstimator]:
    """The gradient estimators with each mitigation of their biases, and without."""
    made: dict[str, ImportanceEstimator] = {}
    for target in ("max_logit", "response_logp"):
        made |= {
            f"gradient {target}": GradientImportance(target),
            f"gradient {target} exclude_target": GradientImportance(target, exclude_target=True),
            f"gradient {target} l2": GradientImportance(target, norm="l2"),
            f"gradient {target} times_input": GradientImportance(target, norm="times_input"),
            f"gradient {target} embedding_norm": GradientImportance(
                target, correction="embedding_norm"
            ),
            f"gradient {target} neighbours": GradientImportance(
                target, exclude_target=True, correction="neighbours"
            ),
        }
    return made
