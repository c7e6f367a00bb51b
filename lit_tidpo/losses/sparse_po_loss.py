"""Preference optimisation with learned sparse masks."""

from __future__ import annotations

from torch import Tensor, nn

from lit_tidpo.functional.losses import dpo_loss, sequence_sum, tdpo_margin
from lit_tidpo.losses.base import LossContext
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.schedules import Scalar


class SparsePOLoss(nn.Module, DPOLoss):
    """TDPO1 whose log-ratios and divergences have learned masks (SparsePO, arXiv 2410.05102).

    ``-log sigmoid(beta (sum_t u_t d_t(y_w) - sum_t u_t d_t(y_l) - sum_t v_t k_t(y_l) + sum_t v_t
    k_t(y_w)))`` of the tokens' log-ratios ``d`` and divergences ``k``. The masks ``u`` and ``v``
    are ``max(0, a h_t + b)`` of the reference's last hidden states ``h_t``, which are trained with
    the policy; ``b`` starts at 1, so that no token is left out at first. The divergences are
    TDPO's, ``KL(reference || policy)``. Masks of the last layer are ``simple_last`` of the authors'
    code; their experiments mix masks of all layers (``simple_all``), with dropout.

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        common: Whether log-ratios and divergences share one mask.
        weighted: Weigh log-ratios by the tokens' importance, too.
    """

    def __init__(self, beta: Scalar = 0.1, common: bool = False, weighted: bool = False) -> None:
        nn.Module.__init__(self)
        DPOLoss.__init__(self, beta, weighted=weighted)
        self.common = common
        self.masks = nn.LazyLinear(1 if common else 2)

    @property
    def needs(self) -> frozenset[str]:
        """The reference's divergences and hidden states, too."""
        return super().needs | {"reference.kl", "reference.hidden"}

    def factors(self, context: LossContext, role: str) -> Tensor:
        """``u``, ``[B, T]``."""
        return self._masks(context, role)[..., 0]

    def loss(self, context: LossContext) -> Tensor:
        """``-log sigmoid`` of the masked margin, ``[B]``."""
        margin = self.score(context, "chosen") - self.score(context, "rejected")
        chosen, rejected = (self._divergence(context, role) for role in ("chosen", "rejected"))
        return dpo_loss(tdpo_margin(margin, chosen, rejected, alpha=1.0, variant=1), self.beta)

    def _divergence(self, context: LossContext, role: str) -> Tensor:
        results = context[role]
        masks = self._masks(context, role)[..., -1]
        return sequence_sum(results["reference.kl"], results.mask, masks)

    def _masks(self, context: LossContext, role: str) -> Tensor:
        masks: Tensor = self.masks(context[role]["reference.hidden"].float())
        return (1 + masks).relu()
