"""Every registered estimator keeps its contract, whoever registered it."""

from __future__ import annotations

import pytest

from lit_tidpo import importance
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.plugins.registry import IMPORTANCE, load, registered
from lit_tidpo.testing import check_importance_estimator

NAMES = sorted({entry.name for entry in registered(IMPORTANCE)})


def several():
    return [importance.gradient(), importance.surprisal()]


@pytest.fixture
def arguments(tmp_path):
    """What the constructors have to be given."""
    file = tmp_path / "tokens.jsonl"
    file.write_text('{"token_ids": [3, 4, 4, 7]}\n')
    return {
        "detector": {"path": "builtin:detector"},
        "rarity": {"path": str(file)},
        "product": {"estimators": several()},
        "mixture": {"estimators": several()},
        "maximum": {"estimators": several()},
        "top_k": {"share": 0.5},
        "per_role": {
            "chosen": importance.contrast(),
            "rejected": importance.contrast(slope=-1.0),
        },
    }


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, arguments):
    check_importance_estimator(
        load(IMPORTANCE, name, ImportanceEstimator)(**arguments.get(name, {}))
    )


@pytest.mark.parametrize(
    ("estimator", "cost"),
    [
        (importance.uniform(), "free"),
        (importance.entropy(), "free"),
        (importance.surprisal("reference"), "1 forward"),
        (importance.surprisal("policy"), "free"),
        (importance.contrast(), "2 forwards"),
        (importance.gradient(), "1 backward"),
        (importance.gradient(model="reference"), "1 forward, 1 backward"),
        (importance.gradient_log_ratio(), "1 forward, 2 backwards"),
        (importance.attention(), "eager attention"),
        (importance.hybrid(), "1 backward"),
        (importance.product(several()), "1 forward, 1 backward"),
        (importance.mixture([importance.gradient(), importance.hybrid()]), "2 backwards"),
        (
            importance.integrated_gradients(),
            "1 backward, a forward and a backward a step",
        ),
    ],
)
def test_the_cost_follows_from_the_needs(estimator, cost):
    assert estimator.cost == cost
