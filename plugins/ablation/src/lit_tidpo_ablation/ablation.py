"""What a target loses without a token."""

from __future__ import annotations

from typing import Literal

import torch
from captum.attr import FeatureAblation
from torch import Tensor
from torch.nn.functional import pad

from lit_tidpo.errors import check_choice
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results

Target = Literal["response_logp", "max_logit"]


class AblationImportance(ImportanceEstimator):
    """Change of a target when the embedding of a token of the response is zero.

    The policy is run once for each token of the longest response, by Captum's ``FeatureAblation``.

    Args:
        target: ``response_logp``: the log-likelihood of the response; ``max_logit``: the largest
            logit at its last token.
    """

    def __init__(self, target: Target = "response_logp") -> None:
        check_choice("target", target, Target)
        self.target = target

    @property
    def needs(self) -> frozenset[str]:
        """Further runs of the policy, and what the target is made of."""
        field = "logps" if self.target == "response_logp" else "final_logits"
        return frozenset({"policy.scaled", f"policy.{field}"})

    def scores(self, results: Results) -> Tensor:
        """Absolute changes, zero off the response, ``[N, T]``."""
        start = int(results.batch.prompt_lengths.min())

        def target(gates: Tensor) -> Tensor:
            found = results["policy.scaled"](pad(gates, (start, 0), value=1.0).unsqueeze(-1))
            if self.target == "response_logp":
                summed: Tensor = found["policy.logps"].sum(-1)
                return summed
            highest: Tensor = found["policy.final_logits"].amax(-1)
            return highest

        open_gates = torch.ones(results.mask[:, start:].shape, device=results.mask.device)
        with torch.no_grad():
            changes: Tensor = FeatureAblation(target).attribute(open_gates, baselines=0.0)
        return pad(changes.abs(), (start, 0)).masked_fill(~results.mask, 0.0)
