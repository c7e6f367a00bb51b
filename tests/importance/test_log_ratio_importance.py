"""The size of the implicit token reward."""

from __future__ import annotations

import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.functional import scale_weights
from lit_tidpo.importance.log_ratio_importance import LogRatioImportance
from lit_tidpo.testing import check_importance_estimator, tiny_batch, tiny_policy


def scores_of(policy, reference, offset=0.1):
    batch, estimator = tiny_batch(), LogRatioImportance(offset)
    return batch, estimator.scores(run(policy, batch, estimator.needs, reference)).detach()


def test_scores_are_the_log_ratios_of_the_full_logits():
    models = tiny_policy(), tiny_policy(seed=1)
    batch, ours = scores_of(*models, offset=0.25)
    for row, (start, end) in enumerate(
        zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    ):
        ids = batch.input_ids[row : row + 1, :end]
        for t in range(start, end):
            policy, reference = (
                model(ids).logits[0, t - 1].log_softmax(-1)[ids[0, t]].item() for model in models
            )
            assert ours[row, t].item() == pytest.approx(abs(policy - reference) + 0.25, abs=1e-5)


def test_a_policy_that_has_not_moved_weighs_its_tokens_alike():
    """Rounding, as between two kernels, must not become weights."""
    moved = tiny_policy()
    for parameter in moved.parameters():
        parameter.data *= 1 + 1e-6
    batch, scores = scores_of(moved, tiny_policy())
    weights = scale_weights(scores, batch.response_mask)
    torch.testing.assert_close(weights, batch.response_mask.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("offset", [0.0, -1.0, float("nan")])
def test_an_offset_that_is_not_positive_is_refused(offset):
    with pytest.raises(InputError, match="expected a finite number above 0"):
        LogRatioImportance(offset)


@pytest.mark.parametrize("offset", [0.1, 2.0])
def test_contract(offset):
    check_importance_estimator(LogRatioImportance(offset))
