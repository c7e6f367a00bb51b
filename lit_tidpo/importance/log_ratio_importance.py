"""How far training has moved the policy at each token."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import check_positive
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class LogRatioImportance(ImportanceEstimator):
    """Size of the implicit token reward: ``|log pi(y_t) - log ref(y_t)| + offset``.

    Chosen and rejected responses pull the policy apart only where they differ, so what has moved
    tells where that was. It costs nothing beyond the log-ratios that the loss needs anyway, and
    knows nothing before the policy has moved. TIS-DPO (arXiv 2410.04350) weighs by the log-ratio of
    two models trained for the purpose.

    Args:
        offset: Nats added to every token, above 0: while the policy has moved less than that, the
            tokens score nearly alike.

    Raises:
        InputError: If the offset is not above 0.
    """

    needs = frozenset({"reference.logps"})

    def __init__(self, offset: float = 0.1) -> None:
        check_positive("offset", offset)
        self.offset = offset

    def scores(self, results: Results) -> Tensor:
        """Absolute log-ratio plus the offset, ``[N, T]``."""
        return results.log_ratios.abs() + self.offset
