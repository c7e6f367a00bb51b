"""Each estimator, named by a configuration, scores the tokens that ``predict`` writes."""

from __future__ import annotations

import functools
import json

import pytest

from lit_tidpo.callbacks.token_writer import TokenWriter
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins
from lit_tidpo.plugins.registry import IMPORTANCE, registered

from .runs import QUIET, make_data, pairs, quiet_trainer

pytestmark = QUIET
NAMES = [e.name for e in registered(IMPORTANCE) if e.value.startswith("lit_tidpo.importance.")]
ROLES = ("chosen", "rejected")
PARTS = '["surprisal", {"class_path": "entropy"}]'
MODELS = '{"positive": {"prompt": "+"}, "negative": {"prompt": "-"}}'
CONTRAST = '{"class_path": "contrast", "init_args": {"slope": -1.0}}'
EAGER = "--model.policy.attn_implementation=eager"  # which hands attention out
# What an estimator is given besides its name.
GIVEN = {
    "attention": [EAGER],
    "attention_rollout": [EAGER],
    "gradient_times_attention": [EAGER],
    "contrast": [f"--model.models={MODELS}"],
    "per_role": [
        f"--model.models={MODELS}",
        "--model.importance.chosen=contrast",
        f"--model.importance.rejected={CONTRAST}",
    ],
    "product": [f"--model.importance.estimators={PARTS}"],
    "mixture": [f"--model.importance.estimators={PARTS}"],
    "maximum": [f"--model.importance.estimators={PARTS}"],
    "top_k": ["--model.importance.share=0.5"],
    "integrated_gradients": ["--model.importance.steps=2"],
    "detector": ["--model.importance.path=builtin:detector"],
    "judged_attention": [EAGER, "--model.importance.tokenizer={model}"],
    "stored": ["--model.importance.path={tokens}"],
    "rarity": ["--model.importance.path={tokens}"],
}


@functools.cache
def parser():
    parser = PluginArgumentParser()
    parser.add_lightning_class_args(PreferenceModule, "model")
    parser.add_argument("--config", action="config")
    return parser


def predicted(path, source, target, words):
    """The lines that a run writes, one for each response."""
    words = [f"--model.policy.path={path}", *words]
    load_named_plugins(words)
    module = parser().instantiate_classes(parser().parse_args(words)).model
    trainer = quiet_trainer(callbacks=[TokenWriter(str(target))])
    trainer.predict(module, make_data(source, path), return_predictions=False)
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """Pairs with weights of their tokens, the terminator's included."""
    folder = tmp_path_factory.mktemp("weighted")
    rows = [
        {**row, **{f"{role}_weights": [1.0, *[2.0] * len(row[role])] for role in ROLES}}
        for row in pairs(5)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def written(model_folder, source, tmp_path_factory):
    """A file of an earlier ``predict``."""
    target = tmp_path_factory.mktemp("earlier") / "tokens.jsonl"
    predicted(model_folder, source, target, ["--model.importance=surprisal"])
    return str(target)


@pytest.mark.parametrize("name", NAMES)
def test_predict_runs_each_estimator(model_folder, source, weighted, written, tmp_path, name):
    data = weighted if name == "supplied" else source
    path = "builtin:policy" if name == "detector" else model_folder
    given = [
        word.replace("{model}", path).replace("{tokens}", written) for word in GIVEN.get(name, [])
    ]
    rows = predicted(path, data, tmp_path / "t.jsonl", [f"--model.importance={name}", *given])
    assert [row["role"] for row in rows] == [*ROLES] * 5
    for row in rows:
        assert len(row["weights"]) == len(row["token_ids"])
        assert sum(row["weights"]) == pytest.approx(len(row["weights"]), rel=1e-4)
