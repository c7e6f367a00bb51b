"""Every registered estimator keeps its contract, whoever registered it."""

from __future__ import annotations

import json

import pytest

from lit_tidpo import importance
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.models.kept_logps import row_keys
from lit_tidpo.plugins.registry import IMPORTANCE, load, registered
from lit_tidpo.testing import check_importance_estimator, tiny_batch

NAMES = sorted({entry.name for entry in registered(IMPORTANCE)})


TEMPLATE = "compare {prompt} a {first} b {second} better"


def small_tokenizer(folder):
    """A tokenizer whose ids the tiny policies know."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "compare", "a", "b", "better"]
    ids = {word: place for place, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def several():
    return [importance.gradient(), importance.surprisal()]


@pytest.fixture
def arguments(tmp_path):
    """What the constructors have to be given."""
    file = tmp_path / "tokens.jsonl"
    file.write_text('{"token_ids": [3, 4, 4, 7]}\n')
    kept, batch = tmp_path / "weights.jsonl", tiny_batch()
    lengths = batch.response_mask.sum(-1).tolist()
    rows = zip(row_keys(batch), lengths, strict=True)
    lines = [json.dumps({"row": key.hex(), "weights": [0.5] * count}) for key, count in rows]
    kept.write_text("\n".join(lines))
    return {
        "detector": {"path": "builtin:detector"},
        "judged_attention": {"tokenizer": small_tokenizer(tmp_path), "template": TEMPLATE},
        "stored": {"path": str(kept)},
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
