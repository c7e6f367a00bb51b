"""Received attention against hand-built probabilities and naive loops."""

from __future__ import annotations

import pytest
import torch
from model_runs import run

from lit_tidpo.errors import InputError
from lit_tidpo.importance.attention_importance import AttentionImportance
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.structures import ResponseBatch, Results
from lit_tidpo.testing import check_importance_estimator, tiny_batch, tiny_policy

# One row: a prompt token, three response tokens, one pad. Two layers of two heads.
HAND_BUILT = torch.tensor(
    [
        [
            [
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [0.5, 0.5, 0.0, 0.0, 0.0],
                [0.2, 0.3, 0.5, 0.0, 0.0],
                [0.1, 0.2, 0.3, 0.4, 0.0],
                [0.0, 0.0, 0.0, 0.0, 1.0],
            ],
            [
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [0.1, 0.9, 0.0, 0.0, 0.0],
                [0.0, 0.0, 1.0, 0.0, 0.0],
                [0.0, 0.0, 0.5, 0.5, 0.0],
                [0.2, 0.2, 0.2, 0.2, 0.2],
            ],
        ],
        [
            [
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [1.0, 0.0, 0.0, 0.0, 0.0],
            ],
            [
                [1.0, 0.0, 0.0, 0.0, 0.0],
                [0.0, 1.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, 1.0, 0.0, 0.0],
                [0.0, 0.0, 0.0, 1.0, 0.0],
                [0.0, 0.0, 0.0, 0.0, 1.0],
            ],
        ],
    ]
)
# What the three response tokens give to each column, summed by hand, per layer and head.
RECEIVED = {
    (0, 0): [0.8, 1.0, 0.8, 0.4, 0.0],
    (0, 1): [0.1, 0.9, 1.5, 0.5, 0.0],
    (1, 0): [3.0, 0.0, 0.0, 0.0, 0.0],
    (1, 1): [0.0, 1.0, 1.0, 1.0, 0.0],
}


def hand_built_scores(**options):
    batch = ResponseBatch(
        input_ids=torch.tensor([[5, 6, 7, 8, 0]]),
        prompt_lengths=torch.tensor([1]),
        lengths=torch.tensor([4]),
        roles=("chosen",),
        index=torch.tensor([0]),
        counted=torch.tensor([True]),
    )
    attentions = tuple(layer.unsqueeze(0) for layer in HAND_BUILT)
    results = Results(batch, {"policy.attentions": attentions})
    return AttentionImportance(**options).scores(results)[0].tolist()


def combined(keys, how):
    return [how([RECEIVED[key][t] for key in keys]) for t in range(5)]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("layers", "heads", "keys"),
    [
        (None, None, list(RECEIVED)),
        ([0], None, [(0, 0), (0, 1)]),
        ([-1], None, [(1, 0), (1, 1)]),
        (None, [1], [(0, 1), (1, 1)]),
        ([0], [-2], [(0, 0)]),
        ([1, 0], [0], [(1, 0), (0, 0)]),
    ],
)
def test_layers_heads_and_reduction_by_hand(layers, heads, keys):
    """What the response's tokens give; what prompt and padding give does not count."""
    averaged = hand_built_scores(layers=layers, heads=heads)
    assert averaged == pytest.approx(combined(keys, mean))
    largest = hand_built_scores(layers=layers, heads=heads, reduction="max")
    assert largest == pytest.approx(combined(keys, max))


def test_per_query_by_hand():
    """Divided by the response tokens that can see the column: 3, 3, 2, 1."""
    expected = [0.8 / 3, 1.0 / 3, 0.8 / 2, 0.4 / 1, 0.0]
    assert hand_built_scores(layers=[0], heads=[0], per_query=True) == pytest.approx(expected)


def test_layers_and_heads_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"layers=\[2\]: the model has 2, expected -2..1"):
        hand_built_scores(layers=[0, 2])
    with pytest.raises(InputError, match=r"heads=\[-3\]"):
        hand_built_scores(heads=[-3])


@pytest.mark.parametrize("attributed", ["policy", "reference"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_of_a_model_equal_a_naive_loop(family, attributed):
    """W6: each row on its own and unpadded, from the model's own attention output."""
    models = {
        "policy": tiny_policy(family, attention="eager"),
        "reference": tiny_policy(family, seed=1, attention="eager"),
    }
    batch, estimator = tiny_batch(), AttentionImportance(model=attributed)
    results = run(models["policy"], batch, estimator.needs, models["reference"])
    ours = estimator.scores(results)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        attentions = models[attributed](ids, output_attentions=True).attentions
        for t in range(length):
            given = [
                layer[0, head, query, t].item()
                for layer in attentions
                for head in range(4)
                for query in range(int(batch.prompt_lengths[row]), length)
            ]
            assert ours[row, t].item() == pytest.approx(sum(given) / 8, abs=1e-5)


def module_with(importance):
    losses = {"preference": WeightedDPOLoss()}
    return PreferenceModule(PolicyConfig(), importance=importance, losses=losses)


def test_kernels_that_hand_out_no_probabilities_are_refused():
    """W6: sdpa would warn and return nothing; the message says what to set."""
    module = module_with(AttentionImportance())
    with pytest.raises(InputError, match=r"'sdpa'.*set policy.attn_implementation=eager"):
        module.attach(tiny_policy())
    module.attach(tiny_policy(attention="eager"))


def test_it_is_the_attributed_model_that_counts():
    module = module_with(AttentionImportance(model="reference"))
    module.attach(tiny_policy(), tiny_policy(seed=1, attention="eager"))
    assert bool(module(tiny_batch()).loss.isfinite().all())
    with pytest.raises(InputError, match="'sdpa'"):
        module.attach(tiny_policy(attention="eager"), tiny_policy(seed=1))


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": [-1], "heads": [0, 2]}, {"reduction": "max", "per_query": True}],
)
@pytest.mark.parametrize("attributed", ["policy", "reference"])
def test_contract(options, attributed):
    check_importance_estimator(AttentionImportance(**options, model=attributed))
