"""Identity preference optimisation."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.losses.divergences import Divergence
from lit_tidpo.losses.pair import PairLoss
from lit_tidpo.schedules import Scalar


class IPOLoss(PairLoss):
    """Squared distance of the margin of log-ratios from its target (arXiv 2310.12036, Eq. 17).

    ``(m - 1 / (2 beta)) ** 2``. The paper's ``tau`` is ``beta``. Its authors averaged
    log-ratios over the tokens of a response, which the formula does not show. Its experiments are
    bandits: the default is not one of the paper's for language models.

    Args:
        beta: Strength of the pull to the reference, above 0: the target is ``1 / (2 beta)``.
        length_normalised: Divide scores by the number of the response's tokens.
        divergence: What keeps the policy near the reference, as in ``dpo``.
        weighted: Weigh tokens by their importance.
    """

    def __init__(
        self,
        beta: Scalar = 0.1,
        length_normalised: bool = True,
        divergence: Divergence | None = None,
        weighted: bool = False,
    ) -> None:
        check_positive("beta", beta)
        self.beta = beta
        self.length_normalised = length_normalised
        self.divergence = divergence
        self.weighted = weighted

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """``(m - 1 / (2 beta)) ** 2``, ``[B]``."""
        return (chosen - rejected - 1 / (2 * self.beta)).square()
