"""What ``predict`` wrote comes back, whatever the order, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lit_tidpo.callbacks.token_writer import prediction_rows
from lit_tidpo.errors import InputError
from lit_tidpo.importance.stored_importance import StoredImportance
from lit_tidpo.importance.surprisal_importance import SurprisalImportance
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.models import Models
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.objective import Objective
from lit_tidpo.structures import Results
from lit_tidpo.testing import tiny_batch, tiny_policy


@pytest.fixture(scope="module")
def prediction():
    models = Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})
    objective = Objective(SurprisalImportance(), "mean", {"preference": WeightedDPOLoss()}, {})
    return objective.explain(models, tiny_batch())


@pytest.fixture(scope="module", params=[".jsonl", ".parquet"])
def file(request, prediction, tmp_path_factory):
    import datasets

    path = tmp_path_factory.mktemp("stored") / f"tokens{request.param}"
    table = datasets.Dataset.from_list(list(prediction_rows(prediction, None)))
    table.to_parquet(path) if request.param == ".parquet" else table.to_json(path)
    return str(path)


@pytest.mark.parametrize("column", ["weights", "scores"])
def test_they_are_what_was_written(prediction, file, column):
    batch = prediction.batch
    stored = StoredImportance(file, column).scores(Results(batch, {}))
    expected = prediction.values[column].masked_fill(~batch.response_mask, 0.0)
    torch.testing.assert_close(stored, expected)
    # A role alone, in other rows and less padding, of another place in the data set.
    alone = dataclasses.replace(batch.role("rejected"), index=batch.index + 7)
    again = StoredImportance(file, column).scores(Results(alone, {}))
    torch.testing.assert_close(again, expected[batch.rows("rejected"), : again.shape[1]])


def test_other_rows_are_refused(file):
    with pytest.raises(InputError, match="has no weights of a response to the prompt 0"):
        StoredImportance(file).scores(Results(tiny_batch(seed=5), {}))
    batch = tiny_batch()
    batch.input_ids[4, 0] += 1  # another prompt
    with pytest.raises(InputError, match="to the prompt 1 of the data set"):
        StoredImportance(file).scores(Results(batch, {}))


def test_files_and_columns_that_are_none_are_refused(file):
    with pytest.raises(InputError, match=r"expected \['gold'\], too"):
        StoredImportance(file, "gold")
    with pytest.raises(InputError, match=r"stored.path='none.jsonl': expected a .jsonl or"):
        StoredImportance("none.jsonl")
