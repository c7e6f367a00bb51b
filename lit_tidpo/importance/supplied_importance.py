"""Scores that came with the data."""

from __future__ import annotations

from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.structures import Results


class SuppliedImportance(ImportanceEstimator):
    """Token scores from the data set's columns ``chosen_weights`` and ``rejected_weights``.

    Or from ``chosen_spans`` and ``rejected_spans``, lists of ``[start, end]`` in characters of the
    response's text: tokens that overlap one score 1, others 0, and all alike where there is none.
    A ``mixture`` with ``uniform`` keeps the others, too.
    """

    def scores(self, results: Results) -> Tensor:
        """What the data supplied, zero off the response, ``[N, T]``.

        Raises:
            InputError: If the rows carry no weights.
        """
        weights = results.batch.supplied_weights
        if weights is None:
            raise InputError(
                "importance 'supplied' needs the columns chosen_weights and rejected_weights, or "
                "chosen_spans and rejected_spans, in the data set: add them, or choose another "
                "estimator"
            )
        return weights
