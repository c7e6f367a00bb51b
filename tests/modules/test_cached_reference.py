"""Training with the reference's log-probs from disk is training with the reference."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lit_tidpo.errors import InputError
from lit_tidpo.importance.base import ImportanceEstimator
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.losses.weighted_dpo_loss import WeightedDPOLoss
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import LoraOptions
from lit_tidpo.models.reference import BaseOfAdapters, FrozenModel

from .runs import (
    LORA,
    QUIET,
    SHORT,
    assert_same,
    byte_tokenizer,
    fit,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
    reference_of,
    write_data,
    write_model,
)

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:split '(train|validation)'.*truncated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]

WEIGHTED = {"losses": {"preference": WeightedDPOLoss(alpha=0)}}
ANCHORED = {
    "losses": {"preference": DPOLoss(), "triplet": TripletLoss(margin=50.0)},
    "anchor": SHORT,
}


class RatioImportance(ImportanceEstimator):
    """Asks for the reference's log-probs, and for no more of it."""

    needs = frozenset({"reference.logps"})

    def scores(self, results):
        ratios = results.log_ratios
        return ratios.detach().abs() + results.mask * 0.1


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model that differs from the policy, so that log-ratios count from the first step on."""
    return write_model(tmp_path_factory.mktemp("other"), rms_norm_eps=0.5)


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def runs(monkeypatch):
    """The models that ran as the reference, one entry for each batch."""
    models = []
    for kind in (FrozenModel, BaseOfAdapters):

        def counted(reference, policy, device, hand_out=kind.active):
            models.append(reference.model)
            return hand_out(reference, policy, device)

        monkeypatch.setattr(kind, "active", counted)
    return models


def folders(cache):
    return sorted(path.name for path in Path(cache).iterdir())


def start(model_folder, seed=0, **options):
    torch.manual_seed(seed)  # new adapters are random
    return make_module(model_folder, **{**WEIGHTED, **options})


CASES = {
    "own start": {},
    "another model": {"reference": "other"},
    "uniform": {"reference": "other", "importance": UniformImportance()},
    "an estimator that compares": {"reference": "other", "importance": RatioImportance()},
    "importance once": {
        "reference": "other",
        "importance": RatioImportance(),
        "importance_every": 0,
    },
    "adapters": {"policy": LORA},
    "a trained adapter": {"policy": "adapter"},
    "anchors": {"reference": "other", **ANCHORED},
    "rewards": {"reference": "other", "evaluation": "rewards"},
}


WHOLE = {"max_epochs": 2, "max_steps": -1, "limit_val_batches": 1.0, "num_sanity_val_steps": 1}


@pytest.fixture(params=CASES)
def case(request, other, adapter):
    options = dict(CASES[request.param])
    if "reference" in options:
        options["reference"] = other
    if options.get("policy") == "adapter":
        options["policy"] = {"adapter": adapter}
    return options


def test_training_and_validation_are_those_with_the_reference(model_folder, source, cache, case):
    """Shuffled, so that batches are made up otherwise when log-probs are computed beforehand."""
    live = fit(start(model_folder, **case), make_data(source, model_folder), **WHOLE)
    module = start(model_folder, reference_cache=cache, **case)
    cached = fit(module, make_data(source, model_folder), **WHOLE)
    assert len(cached.metrics) == 6
    assert any(name.startswith("val/") for name in cached.metrics[-1])
    for found, expected in zip(cached.metrics, live.metrics, strict=True):
        assert_same(found, expected, atol=5e-4)  # of sums up to 300
    for found, expected in zip(cached.gradients, live.gradients, strict=True):
        assert_same(found, expected, atol=3e-4)  # of entries up to 13
    assert_same(cached.parameters[-1], live.parameters[-1], atol=5e-5)  # of entries up to 3
    assert len(folders(cache)) == 2  # one for each split


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_in_the_same_batches_every_bit_is_the_same(model_folder, data, cache, case, precision):
    data.setup("fit")

    def train(**options):
        module = start(model_folder, **case, **options)
        return fit(module, _loader(data, batch_size=4), precision=precision, **WHOLE)

    live, cached = train(), train(reference_cache=cache)
    assert len(live.metrics) == 6
    for found, expected in zip(cached.metrics, live.metrics, strict=True):
        assert_same(found, expected)
    for found, expected in zip(cached.gradients, live.gradients, strict=True):
        assert_same(found, expected)
    assert_same(cached.parameters[-1], live.parameters[-1])
    if precision == "bf16-mixed":  # it is another cache, of other numbers
        fit(start(model_folder, reference_cache=cache, **case), _loader(data), max_steps=1)
        assert len(folders(cache)) == 2


def test_what_is_kept_are_the_log_probs_of_the_plain_formula(
    model_folder, data, batch, cache, other
):
    module = start(model_folder, reference=other, reference_cache=cache)
    quiet_trainer(limit_val_batches=1.0).validate(module, data, verbose=False)
    found = module.models.kept.lookup(batch)
    model = build_policy(module._frozen(other)).eval()
    for row, ids in enumerate(batch.input_ids):
        prompt, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        with torch.no_grad():
            logps = model(input_ids=ids[None, :length]).logits[0].double().log_softmax(-1)
        expected = torch.zeros(len(ids))
        for place in range(prompt, length):
            expected[place] = logps[place - 1, ids[place]]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)
    assert found.dtype == torch.float32


def test_nothing_is_computed_twice(model_folder, source, cache, other, runs):
    def train(**options):
        runs.clear()
        module = start(model_folder, reference=other, reference_cache=cache, **options)
        data = make_data(source, model_folder, batch_size=4)
        recorder = fit(module, data, max_epochs=3, max_steps=-1, limit_val_batches=1.0)
        return recorder, len(runs)

    first, computed = train()
    assert computed == 3 + 2  # batches of the two splits, whatever the epochs
    second, computed = train()
    assert computed == 0
    assert second.metrics == first.metrics
    assert_same(second.parameters[-1], first.parameters[-1])
    assert len(folders(cache)) == 2
    # settings that the reference has nothing to do with
    for options in (
        {"losses": {"p": WeightedDPOLoss(alpha=0, beta=0.5)}},
        {"seed": 3},
        {"importance": UniformImportance()},
    ):
        assert train(**options)[1] == 0
    assert train(**ANCHORED)[1] == 3 * (3 + 2)  # the anchors' own, of each batch
    assert len(folders(cache)) == 2


def test_validation_and_test_compute_their_own(model_folder, source, cache, other, runs):
    module = start(model_folder, reference=other, reference_cache=cache)
    data = make_data(source, model_folder, test_split="train")
    quiet = {"limit_val_batches": 1.0, "limit_test_batches": 1.0}
    (found,) = quiet_trainer(**quiet).validate(module, data, verbose=False)
    assert len(runs) == 2
    assert reference_of(module).model is None
    (tested,) = quiet_trainer(**quiet).test(module, data, verbose=False)
    assert len(runs) == 5
    live = start(model_folder, reference=other)
    (expected,) = quiet_trainer(**quiet).validate(live, data, verbose=False)
    assert_same(found, expected, atol=2e-5)
    (expected,) = quiet_trainer(**quiet).test(live, data, verbose=False)
    assert_same(tested, expected, atol=2e-5)


# What a cache is named by


def _names(cache, model_folder, source, data_options=None, **options):
    shutil.rmtree(cache, ignore_errors=True)
    module = start(model_folder, reference_cache=cache, **options)
    data = make_data(source, **{"model_folder": model_folder, **(data_options or {})})
    fit(module, data, max_steps=1)
    return folders(cache)


def test_another_model_token_truncation_or_tokenizer_is_another_cache(
    model_folder, source, cache, other, tmp_path
):
    known = _names(cache, model_folder, source)
    assert len(known) == 1
    assert _names(cache, model_folder, source) == known
    assert _names(cache, model_folder, source, {"batch_size": 3, "seed": 5}) == known
    copied = shutil.copytree(model_folder, tmp_path / "copied")
    assert _names(cache, str(copied), source) == known

    one_token = Path(write_data(tmp_path / "data"))
    rows = (one_token / "train.jsonl").read_text()
    (one_token / "train.jsonl").write_text(rows.replace("yes7", "yep7"))
    words = byte_tokenizer()
    words.add_tokens(["yes"])
    words.save_pretrained(tmp_path / "words")
    weights = build_policy(start(model_folder).policy_config)
    with torch.no_grad():
        weights.lm_head.weight[5, 5] += 1e-6
    weights.save_pretrained(tmp_path / "weights")
    others = [
        _names(cache, model_folder, source, reference=other),
        _names(cache, model_folder, source, reference=str(tmp_path / "weights")),
        _names(cache, model_folder, str(one_token)),
        _names(cache, model_folder, source, {"max_length": 8}),
        _names(cache, model_folder, source, {"max_rows": 11}),
        _names(
            cache,
            write_model(tmp_path / "wide", vocabulary=300),
            source,
            {"model_folder": str(tmp_path / "words")},
        ),
        _names(cache, model_folder, source, policy={"dtype": "bfloat16"}),
        _names(cache, model_folder, source, policy={"attn_implementation": "eager"}),
    ]
    assert len({name for names in [known, *others] for name in names}) == 9


def test_the_manifest_can_be_read(model_folder, data, cache):
    fit(start(model_folder, reference_cache=cache), data, max_steps=1)
    (name,) = folders(cache)
    content = json.loads((Path(cache) / name / "manifest.json").read_text())["content"]
    assert content["rows"]["number"] == 24  # chosen and rejected of twelve pairs
    assert content["precision"] == "32-true"
    assert set(content["reference"]) == {"weights", "config"}


def test_a_damaged_cache_stops_the_run(model_folder, data, cache):
    fit(start(model_folder, reference_cache=cache), data, max_steps=1)
    (name,) = folders(cache)
    part = Path(cache) / name / "part-0.safetensors"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(InputError, match=f"{name}' is damaged"):
        fit(start(model_folder, reference_cache=cache), data, max_steps=1)


def test_a_run_that_stops_while_computing_leaves_nothing(model_folder, data, cache, monkeypatch):
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return run(*arguments)

    run = Models.run_reference
    monkeypatch.setattr(Models, "run_reference", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(start(model_folder, reference_cache=cache), data, max_steps=1)
    assert not Path(cache).exists() or folders(cache) == []


# What is refused


def test_what_log_probs_cannot_give_is_refused(model_folder):
    with pytest.raises(
        InputError, match=r"loss 'preference' needs 'reference\.kl'.*alpha=0.*leave"
    ):
        make_module(model_folder, reference_cache="cache")
    for need in ("embeddings", "final_logits", "label_logits", "attentions"):
        key = f"reference.{need}"
        estimator = RatioImportance()
        estimator.needs = frozenset({key, "reference.logps"})
        with pytest.raises(InputError, match=f"importance RatioImportance needs '{key}', "):
            start(model_folder, importance=estimator, reference_cache="cache")
        # where nobody asks for weights it does not run
        idle = {"losses": {"preference": DPOLoss()}, "importance": estimator}
        with pytest.warns(UserWarning, match="an effect on predict alone"):
            start(model_folder, reference_cache="cache", **idle)


def test_streams_are_refused(model_folder, source, cache):
    data = make_data(source, model_folder, streaming=True)
    with pytest.raises(InputError, match=r"got a stream \(PairStream\): set data.streaming=false"):
        fit(start(model_folder, reference_cache=cache), data, max_steps=1)


# Memory


def test_the_reference_is_gone_before_the_first_step(model_folder, data, cache):
    seen = []

    class Watcher(Callback):
        def on_train_start(self, trainer, module):
            self.reference = weakref.ref(reference_of(module).model)

        def on_train_batch_start(self, *_):
            seen.append(self.reference())

    module = start(model_folder, reference_cache=cache)
    fit(module, data, callbacks=[Watcher()])
    assert seen == [None] * 3
    assert reference_of(module).model is None


def test_predicting_after_training_runs_the_reference_as_it_was(model_folder, source, cache):
    def predicted(**options):
        module = start(model_folder, **options)
        data = make_data(source, model_folder)
        fit(module, data)
        return quiet_trainer().predict(module, data)

    for found, expected in zip(predicted(reference_cache=cache), predicted(), strict=True):
        for role in expected.batch.roles:
            ours, theirs = found.of_role(role), expected.of_role(role)
            kl = ours["reference.kl"]
            torch.testing.assert_close(kl, theirs["reference.kl"], atol=1e-5, rtol=0)
            assert theirs.log_ratios.abs().max() > 1e-2
            torch.testing.assert_close(ours.log_ratios, theirs.log_ratios, atol=1e-5, rtol=0)


def test_data_that_come_after_training_meet_the_reference_as_it_was(model_folder, source, cache):
    def tested(**options):
        module = start(model_folder, **options)
        data = make_data(source, model_folder, test_split="validation")
        fit(module, data)
        return quiet_trainer().test(module, data, verbose=False)[0]

    found, expected = tested(reference_cache=cache), tested()
    assert abs(expected["test/rewards/chosen"]) > 1e-3
    assert_same(found, expected, atol=1e-5)


def test_attached_models_keep_their_reference(model_folder, data, cache):
    module = start(model_folder, reference_cache=cache)
    module.attach(build_policy(module.policy_config))
    found = fit(module, data)
    assert reference_of(module).model is not None
    expected = fit(start(model_folder), data)
    assert_same(found.parameters[-1], expected.parameters[-1], atol=2e-6)


# Resuming


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
@pytest.mark.parametrize("kept", [True, False], ids=["cache kept", "cache lost"])
@pytest.mark.parametrize("policy", [{}, {"lora": LoraOptions(r=2)}], ids=["full", "adapters"])
def test_a_resumed_run_never_takes_the_trained_policy_for_the_reference(
    model_folder, source, tmp_path, cache, kept, policy
):
    def run(folder=None, **options):
        module = start(model_folder, reference_cache=cache, policy=policy)
        data = make_data(source, model_folder)
        options = {"max_epochs": 2, "max_steps": -1, "limit_val_batches": 1.0, **options}
        return fit(module, data, folder, **options)

    whole = run(tmp_path / "steps")
    known = folders(cache)
    if not kept:
        shutil.rmtree(cache)
    rest = run(ckpt_path=str(tmp_path / "steps" / "step=2.ckpt"))
    assert folders(cache) == known
    for step, expected in zip(rest.metrics, whole.metrics[2:], strict=True):
        assert "train/rewards/chosen" in step
        assert_same(step, {name: expected[name] for name in step})
    assert_same(rest.parameters[-1], whole.parameters[-1])


# Loaders of the user's own


def _loader(data, **options):
    whole = data.train_dataloader()
    return DataLoader(whole.dataset, **{"collate_fn": whole.collate_fn, **options})


def _batches(data):
    """A data set of ready batches."""
    return DataLoader(list(_loader(data, batch_size=5)), batch_size=None, shuffle=True)


LOADERS = {
    "shuffled": lambda data: _loader(data, batch_size=5, shuffle=True, drop_last=True),
    "batches": _batches,
    "one batch": lambda data: DataLoader(
        list(_loader(data, batch_size=5)), collate_fn=lambda batches: batches[0]
    ),
    "batch sampler": lambda data: _loader(data, batch_sampler=[[0, 3, 5], [7, 1], [2]]),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_other_loaders_serve_and_keep_their_order(model_folder, data, cache, other, make):
    data.setup("fit")

    def train(**options):
        module = start(model_folder, reference=other, **options)
        torch.manual_seed(7)  # shuffling draws from the global generator
        return fit(module, make(data), max_epochs=3, max_steps=-1)

    live, cached = train(), train(reference_cache=cache)
    assert cached.rows == live.rows
    assert_same(cached.parameters[-1], live.parameters[-1], atol=5e-6)


def test_other_batches_are_refused(model_folder, data, cache):
    loader = DataLoader([torch.zeros(2)] * 4)
    with pytest.raises(InputError, match="gives Tensor, expected ResponseBatch"):
        fit(start(model_folder, reference_cache=cache), loader)


def test_rows_that_were_not_in_the_data_are_refused(model_folder, data, batch, cache):
    module = start(model_folder, reference_cache=cache)
    module.configure_model()
    before = module(batch)  # outside a Trainer the reference runs
    fit(module, data)
    with pytest.raises(InputError, match=r"no log-probs of pair 0 .*leave reference_cache out"):
        module(batch)
    assert before.context["chosen"].log_ratios.abs().max() < 1e-5
    assert parameters(module)
