"""What one of two models finds likelier than the other."""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.functional.importance import contrast_factor
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class ContrastImportance(ImportanceEstimator):
    """``exp(slope * clip(log p - log q, low, high))`` of two models (arXiv 2410.04350).

    The models are two of the run: ``policy``, ``reference``, or those of ``model.models``, which
    may be the policy itself under another ``prompt``. With ``per_role`` it is what several papers
    weigh by, for ``chosen`` and ``rejected`` each:

    * TIS-DPO (arXiv 2410.04350): two models that were trained, or prompted, to be good and bad;
      slope 1 and -1, ``model.weight_scale: none``;
    * cDPO (arXiv 2411.19943): ``q`` over ``p`` of models of right and wrong solutions finds the
      critical tokens of the rejected one. (The paper's score has the whole vocabulary under it.)
    * SePO (arXiv 2408.13518): an oracle over the reference, of which ``top_k`` with ``flat`` keeps
      the highest, in the rejected the lowest (slope -1);
    * TGDPO (arXiv 2506.14574): ``1 + alpha r``, to first order, with a trained model over the
      reference and slopes ``alpha beta`` and ``-alpha beta``.

    Args:
        positive: Model of ``p``.
        negative: Model of ``q``.
        slope: Factor in the exponent; not 0.
        low: Least log-ratio that counts, in nats.
        high: Largest log-ratio that counts, in nats.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        positive: str = "positive",
        negative: str = "negative",
        slope: float = 1.0,
        low: float = -0.5,
        high: float = 1.5,
    ) -> None:
        if positive == negative:
            raise InputError(f"positive and negative are both {positive!r}: expected two models")
        if not isfinite(slope) or slope == 0:
            raise InputError(f"slope={slope}: expected a finite number that is not 0")
        if not -float("inf") < low < high < float("inf"):
            raise InputError(f"low={low} and high={high}: expected finite numbers, low below high")
        self.positive = positive
        self.negative = negative
        self.slope = slope
        self.low = low
        self.high = high

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of both models."""
        return frozenset({f"{self.positive}.logps", f"{self.negative}.logps"})

    def scores(self, results: Results) -> Tensor:
        """Exponentials of the clipped log-ratios, ``[N, T]``."""
        ratios: Tensor = results[f"{self.positive}.logps"] - results[f"{self.negative}.logps"]
        return contrast_factor(ratios, self.slope, self.low, self.high)
