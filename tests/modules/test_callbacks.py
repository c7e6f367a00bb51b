"""Each callback of Lightning's works with a policy of ours, or is refused with the reason."""

import functools
import json
from types import SimpleNamespace

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from lit_tidpo.callbacks import MovingReference, SampleGenerations
from lit_tidpo.callbacks.throughput import prompts, tokens
from lit_tidpo.errors import InputError
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.testing import tiny_policy

from .runs import (
    LORA,
    NO_TRIPLET,
    QUIET,
    assert_same,
    byte_tokenizer,
    every_step,
    fit,
    make_built,
    make_data,
    make_module,
    parameters,
    quiet_trainer,
    reference_of,
)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:When using `Trainer.accumulate_grad_batches"
    ),  # steps are meant
    *QUIET,
    pytest.mark.filterwarnings("ignore:`.fit.* was called without a model"),
    pytest.mark.filterwarnings("ignore:.*is set, but there is no last checkpoint"),
    pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`, you need to define"),
    pytest.mark.filterwarnings("ignore:.*with a model that overrides the configure_model"),
]

PASSIVE = {
    "Callback": lambda folder: Callback(),
    "Checkpoint": lambda folder: Checkpoint(),
    "DeviceStatsMonitor": lambda folder: DeviceStatsMonitor(cpu_stats=True),
    "EarlyStopping": lambda folder: EarlyStopping("val/loss/total", patience=9),
    "LambdaCallback": lambda folder: LambdaCallback(on_fit_start=lambda *rest: None),
    "LearningRateMonitor": lambda folder: LearningRateMonitor(),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder),
    "ModelSummary": lambda folder: ModelSummary(),
    "OnExceptionCheckpoint": lambda folder: OnExceptionCheckpoint(folder),
    "RichModelSummary": lambda folder: RichModelSummary(),
    "RichProgressBar": lambda folder: RichProgressBar(),
    "SpikeDetection": lambda folder: SpikeDetection(exclude_batches_path=str(folder / "x")),
    "ThroughputMonitor": lambda folder: ThroughputMonitor(prompts, tokens),
    "Timer": lambda folder: Timer("00:01:00:00"),
    "TQDMProgressBar": lambda folder: TQDMProgressBar(),
}
ACTIVE = {
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.5),
    "GradientAccumulationScheduler": lambda: GradientAccumulationScheduler({0: 2}),
    "WeightAveraging": lambda: WeightAveraging(),
}
REFUSED = {
    "BackboneFinetuning": (BackboneFinetuning, "module, which has none: train adapters"),
    "ModelPruning": (lambda: ModelPruning("l1_unstructured"), "prune the exported model"),
    "StochasticWeightAveraging": (
        lambda: StochasticWeightAveraging(swa_lrs=1e-3),
        "before the Trainer has built",
    ),
}
SEARCHING = {"BatchSizeFinder", "LearningRateFinder"}  # test_searches.py
ABSTRACT = {"BaseFinetuning", "BasePredictionWriter", "ProgressBar"}


def train(source, model_folder, folder, *callbacks):
    """Parameters after two epochs of plain DPO with some callbacks."""
    module = make_module(model_folder, **NO_TRIPLET)
    trainer = quiet_trainer(
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),
        enable_model_summary=any(isinstance(each, ModelSummary) for each in callbacks),
        callbacks=list(callbacks),
    )
    trainer.fit(module, make_data(source, model_folder))
    return parameters(module)


class MeanLogps(LossComponent):
    """Without a reference."""

    def loss(self, context):
        return -context["chosen"]["policy.logps"].sum(-1)


@pytest.fixture
def trained(source, model_folder, tmp_path):
    return functools.partial(train, source, model_folder, tmp_path)


@pytest.fixture(scope="module")
def plain(source, model_folder, tmp_path_factory):
    return train(source, model_folder, tmp_path_factory.mktemp("plain"))


def test_none_of_lightnings_is_left_out():
    known = PASSIVE.keys() | ACTIVE.keys() | REFUSED.keys() | SEARCHING | ABSTRACT
    assert known == {*lightning_callbacks.__all__}


@pytest.mark.parametrize("name", PASSIVE)
def test_what_watches_changes_nothing(trained, plain, tmp_path, name):
    if name == "DeviceStatsMonitor":
        pytest.importorskip("psutil")
    assert_same(trained(PASSIVE[name](tmp_path / "kept")), plain)


@pytest.mark.parametrize("name", ACTIVE)
def test_what_acts_changes_the_policy(trained, plain, name):
    with_it = trained(ACTIVE[name]())
    assert any(not torch.equal(with_it[key], plain[key]) for key in plain)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(trained, name):
    make, reason = REFUSED[name]
    with pytest.raises(InputError, match=f"{name} .*{reason}"):
        trained(make())


def test_throughput_is_counted_in_prompts_and_tokens(trained, tmp_path, batch):
    assert (prompts(batch), tokens(batch)) == (4, int(batch.attention_mask.sum()))
    trained(ThroughputMonitor(prompts, tokens, window_size=2))
    header = next((tmp_path).rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train/device/samples_per_sec", "train/device/items_per_sec"} <= {*header}


def test_generations_are_the_policy_s_and_move_nothing(source, model_folder, tmp_path, plain):
    """The likeliest tokens, as transformers' own generation takes them, at each validation."""
    callback = SampleGenerations(prompts=2, max_new_tokens=6, top_k=1)
    assert_same(train(source, model_folder, tmp_path, callback), plain)
    (file,) = tmp_path.rglob("generations.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["step"], row["index"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    policy = make_built(model_folder, **NO_TRIPLET).policy
    policy.load_state_dict({name.removeprefix("policy."): plain[name] for name in plain})
    tokenizer = byte_tokenizer()
    for row in rows[2:]:
        ids = tokenizer(row["prompt"], return_tensors="pt", add_special_tokens=False)["input_ids"]
        whole = policy.eval().generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
        assert row["response"] == tokenizer.decode(whole[0, ids.shape[1] :])


def test_a_run_ends_where_the_policy_is_too_far_from_its_reference(source, model_folder):
    """Lightning's own callback, by the KL in nats that the loss logs."""
    module = make_module(model_folder, **NO_TRIPLET)
    far = EarlyStopping(
        "train/kl/chosen", patience=99, divergence_threshold=1e-4, check_on_train_epoch_end=True
    )
    trainer = quiet_trainer(max_epochs=9, limit_train_batches=1, callbacks=[far])
    trainer.fit(module, make_data(source, model_folder))
    assert float(trainer.callback_metrics["train/kl/chosen"]) > 1e-4
    assert 1 < trainer.global_step < 9


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_reference_that_moves_is_that_of_the_formula_also_after_a_restart(
    source, model_folder, tmp_path
):
    """By a loop over the parameters of each step; the run that goes on ends with the same."""

    def run(steps, path=None):
        module = make_module(model_folder, **NO_TRIPLET)
        moving = MovingReference(alpha=0.25, every_n_steps=2)
        saver = every_step(tmp_path / ("on" if path else "whole"))
        recorder = fit(
            module,
            make_data(source, model_folder, batch_size=2),
            ckpt_path=path,
            max_steps=steps,
            callbacks=[moving, *saver["callbacks"]],
            enable_checkpointing=True,
        )
        return recorder.parameters, reference_of(module).model.state_dict()

    steps, found = run(5)
    start = parameters(make_built(model_folder, **NO_TRIPLET))
    for name, expected in start.items():
        for step in (2, 4):
            expected = 0.25 * steps[step - 1][name] + 0.75 * expected
        torch.testing.assert_close(found[name.removeprefix("policy.")], expected)
    _, again = run(5, str(tmp_path / "whole" / "step=3.ckpt"))
    assert_same(dict(again), dict(found))


@pytest.mark.parametrize(
    "options",
    [{"policy": LORA}, {"reference_cache": "cache"}, {"losses": {"preference": MeanLogps()}}],
)
def test_a_reference_that_cannot_move_is_refused(
    source, model_folder, tmp_path, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    module = make_module(model_folder, **{"losses": {"preference": DPOLoss()}, **options})
    with pytest.raises(InputError, match=r"reference cannot move|the reference moves"):
        fit(module, make_data(source, model_folder), callbacks=[MovingReference()])


def test_a_reference_that_is_shared_out_does_not_move(monkeypatch):
    """Its ranks hold parts, and keep what they gathered of them."""
    module = PreferenceModule(PolicyConfig(), losses={"preference": DPOLoss()})
    module.attach(tiny_policy())
    monkeypatch.setattr(PreferenceModule, "family", SimpleNamespace(in_step=True))
    with pytest.raises(InputError, match="shares out over the ranks"):
        MovingReference().on_train_start(SimpleNamespace(global_step=0), module)
