"""Plain DPO."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.functional.losses import dpo_loss
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class DPOLoss(PairLoss):
    """Direct preference optimisation (arXiv 2305.18290, Eq. 7).

    ``-log sigmoid(beta (s_w - s_l))`` of the scores of chosen and rejected response: their summed
    log-ratios, or ``f'`` of those (f-DPO, arXiv 2309.16240), by length (arXiv 2411.15124, Eq. 6).

    Args:
        beta: Inverse temperature of the implicit reward, per nat, above 0.
        length_normalised: Divide scores by the number of the response's tokens.
        divergence: What keeps the policy near the reference: ``ForwardKL``, ``JensenShannon``,
            ``AlphaDivergence`` or ``ChiSquaredKL``; by default DPO's own, ``ReverseKL``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self,
        beta: Scalar = 0.1,
        length_normalised: bool = False,
        divergence: Divergence | None = None,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.length_normalised = length_normalised
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``-log sigmoid(beta (s_w - s_l))``, ``[B]``."""
        return dpo_loss(chosen - rejected, self.beta)
