"""Token-level Bregman preference optimisation with a learned baseline."""

from __future__ import annotations

from torch import Tensor, nn

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.losses import sequence_mean
from lit_tidpo.losses.token_ratios import TokenRatioLoss
from lit_tidpo.schedules import Scalar
from lit_tidpo.structures import Results


class TBPOQLoss(nn.Module, TokenRatioLoss):
    """Ratio matching of tokens, corrected by a learned baseline (TBPO-Q, arXiv 2605.12288).

    As ``tbpo``, with ``b_t(y_l) - b_t(y_w)`` in the place of the divergences, less its mean over
    the shared places of the pair, clamped to ``[-limit, limit]``. The baseline ``b`` is linear in
    the policy's last hidden states, detached, and trained with the policy; the authors' launch
    scripts have a hidden layer of 1024 there. The paper itself was not at hand.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        power: Power ``lambda`` of the divergence, 0 or more.
        scale: Scale ``s`` of the divergence, above 0.
        limit: Largest correction in nats, above 0.
    """

    needs = frozenset({"reference.logps", "policy.hidden"})

    def __init__(
        self, beta: Scalar = 0.1, power: float = 0.0, scale: float = 4.0, limit: float = 10.0
    ) -> None:
        nn.Module.__init__(self)
        TokenRatioLoss.__init__(self, beta, power, scale)
        check_positive("limit", limit)
        self.limit = limit
        self.baseline = nn.LazyLinear(1)

    def values(self, results: Results) -> Tensor:
        """``b``, ``[B, T]``."""
        baseline: Tensor = self.baseline(results["policy.hidden"].detach().float())
        return baseline.squeeze(-1)

    def adjusted(self, difference: Tensor, shared: Tensor) -> Tensor:
        """Without its mean, and clamped, ``[B, T]``."""
        mean = sequence_mean(difference, shared).unsqueeze(-1)
        return (difference - mean).clamp(-self.limit, self.limit)
