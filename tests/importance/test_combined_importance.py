"""Estimators made of several others, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from lit_tidpo.data.collation import GroupCollator
from lit_tidpo.errors import InputError
from lit_tidpo.importance.contrast_importance import ContrastImportance
from lit_tidpo.importance.gradient_importance import GradientImportance
from lit_tidpo.importance.maximum_importance import MaximumImportance
from lit_tidpo.importance.mixture_importance import MixtureImportance
from lit_tidpo.importance.optimal_transport_importance import OptimalTransportImportance
from lit_tidpo.importance.per_role_importance import PerRoleImportance
from lit_tidpo.importance.product_importance import ProductImportance
from lit_tidpo.importance.supplied_importance import SuppliedImportance
from lit_tidpo.importance.surprisal_importance import SurprisalImportance
from lit_tidpo.importance.top_k_importance import TopKImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.plugins.hparams import as_plain_data
from lit_tidpo.structures import ResponseBatch, Results
from lit_tidpo.testing import tiny_groups

# A prompt token, then the response, then padding; twice.
SUPPLIED = torch.tensor([[0.0, 1.0, 3.0, 2.0, 0.0], [0.0, 4.0, 0.0, 0.0, 0.0]])
LOGPS = torch.tensor([[0.0, -6.0, -1.0, -2.0, 0.0], [0.0, -1.0, -2.0, -3.0, 0.0]])


@pytest.fixture
def results():
    batch = ResponseBatch(
        input_ids=torch.full((2, 5), 7),
        prompt_lengths=torch.tensor([1, 1]),
        lengths=torch.tensor([4, 4]),
        roles=("chosen", "rejected"),
        index=torch.tensor([0]),
        counted=torch.tensor([True]),
        supplied_weights=SUPPLIED,
    )
    return Results(batch, {"policy.logps": torch.zeros(2, 5), "reference.logps": LOGPS})


def both():
    """With mean 1: 0.5, 1.5, 1 and 3, 0, 0; 2, 1/3, 2/3 and 0.5, 1, 1.5."""
    return [SuppliedImportance(), SurprisalImportance()]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (ProductImportance(both()), [[1.0, 0.5, 2 / 3], [1.5, 0.0, 0.0]]),
        (MaximumImportance(both()), [[2.0, 1.5, 1.0], [3.0, 1.0, 1.5]]),
        (MixtureImportance(both()), [[1.25, 11 / 12, 5 / 6], [1.75, 0.5, 0.75]]),
        (MixtureImportance(both(), [0.25, 0.75]), [[1.625, 0.625, 0.75], [1.125, 0.75, 1.125]]),
        (TopKImportance(SuppliedImportance(), share=0.5), [[0.0, 3.0, 2.0], [4.0, 0.0, 0.0]]),
        (TopKImportance(SuppliedImportance(), count=1), [[0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]),
        (
            TopKImportance(SuppliedImportance(), count=2, flat=True),
            [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]],  # of like ones the earlier
        ),
        (TopKImportance(SuppliedImportance(), share=0.01), [[0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]),
        (TopKImportance(SuppliedImportance(), count=9), [[1.0, 3.0, 2.0], [4.0, 0.0, 0.0]]),
        (
            PerRoleImportance(SuppliedImportance(), SurprisalImportance()),
            [[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]],
        ),
    ],
)
def test_by_hand(results, estimator, expected):
    scores = estimator.scores(results)
    torch.testing.assert_close(scores[:, 1:4], torch.tensor(expected))
    assert bool((scores[:, [0, 4]] == 0).all())


def test_the_best_of_a_group_is_its_chosen():
    groups = tiny_groups()
    results = Results(groups, {"policy.logps": torch.zeros(groups.input_ids.shape)})
    estimator = PerRoleImportance(UniformImportance(), TopKImportance(UniformImportance(), count=1))
    kept = estimator.scores(results).masked_fill(~groups.response_mask, 0.0).sum(-1)
    best = groups.rows("response_1")
    lengths = groups.response_mask.sum(-1).float()
    assert torch.equal(kept[best], lengths[best])
    assert kept[best.stop :].tolist() == [1.0] * (len(kept) - best.stop)


def test_they_need_and_are_what_their_parts_are():
    parts = [GradientImportance(), OptimalTransportImportance(), ContrastImportance("a", "b")]
    mixture = MixtureImportance([parts[0], ProductImportance(parts[1:])])
    assert mixture.needs == frozenset().union(*(part.needs for part in parts))
    assert mixture.looks_at == "group"
    assert not mixture.signed


def test_their_lists_are_stored():
    stored = as_plain_data(MixtureImportance(both(), [0.5, 0.5]))["init_args"]
    paths = [each["class_path"].rpartition(".")[2] for each in stored["estimators"]]
    assert paths == ["SuppliedImportance", "SurprisalImportance"]
    assert stored["shares"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProductImportance([UniformImportance()]), "expected two or more"),
        (lambda: MaximumImportance([]), "estimators has 0"),
        (lambda: MixtureImportance(both(), [1.0]), r"shares=\[1.0\]: expected 2 numbers"),
        (lambda: MixtureImportance(both(), [0.7, 0.7]), "of sum 1"),
        (lambda: MixtureImportance(both(), [1.5, -0.5]), "of 0 or more"),
        (lambda: TopKImportance(), "share=None and count=None: expected one of the two"),
        (lambda: TopKImportance(share=0.5, count=1), "share=0.5 and count=1"),
        (lambda: TopKImportance(share=1.5), "share=1.5"),
        (lambda: TopKImportance(count=0), "count=0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_labels_tell_whose_estimator_scores_a_response():
    group = {"prompt_ids": [1], "index": 0}
    labels = [True, False, True]
    responses = [[{"ids": [5, 6, 2], "label": label}] for label in labels]
    batch = GroupCollator()([{**group, "responses": own} for own in responses])
    estimator = PerRoleImportance(UniformImportance(), TopKImportance(UniformImportance(), count=1))
    values = {name: torch.zeros(3, 4) for name in ("policy.logps", "reference.logps")}
    scores = estimator.scores(Results(batch, values))
    assert ((scores > 0) & batch.response_mask).sum(-1).tolist() == [3, 1, 3]
