"""Single responses with a label, from rows in a file to a trained policy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_tidpo.callbacks.report_page import ReportPage
from lit_tidpo.callbacks.token_writer import prediction_rows
from lit_tidpo.data import RowCollator
from lit_tidpo.data.tokenization import TokenizationOptions
from lit_tidpo.errors import InputError
from lit_tidpo.importance.random_importance import RandomImportance
from lit_tidpo.importance.uniform_importance import UniformImportance
from lit_tidpo.losses.bco_loss import BCOLoss
from lit_tidpo.losses.dpo_loss import DPOLoss
from lit_tidpo.losses.kto_loss import KTOLoss
from lit_tidpo.losses.plackett_luce_loss import PlackettLuceLoss
from lit_tidpo.losses.triplet_loss import TripletLoss
from lit_tidpo.memory.rows import largest_batch
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.objective import Objective
from lit_tidpo.testing import tiny_policy

from .runs import (
    QUIET,
    SGD,
    Recorder,
    assert_same,
    byte_tokenizer,
    make_data,
    make_module,
    quiet_trainer,
)
from .single_response_run import run

pytestmark = QUIET


def rows(count, start=0):
    return [
        {
            "prompt": f"Q{number}" + "?" * (1 + number % 3),
            "completion": (" yes" if number % 3 else " no") * (1 + number % 2) + str(number),
            "label": number % 3 > 0,
        }
        for number in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    for split, own in (("train", rows(12)), ("validation", rows(5, 100))):
        text = "".join(json.dumps(row) + "\n" for row in own)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture
def data(source, model_folder):
    return make_data(source, model_folder)


class FusedHead(nn.Module):
    """A model with the outputs that TRL's patched ones have."""

    is_gradient_checkpointing = False

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, labels, use_cache=False, fused_lm_head=True):
        logits = self.model(input_ids, attention_mask=attention_mask).logits[:, :-1]
        logps = logits.log_softmax(-1)
        told = labels[:, 1:]
        found = logps.gather(-1, told.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        entropy = -(logps.exp() * logps).sum(-1)
        return SimpleNamespace(
            log_probs=found.masked_fill(told == -100, 0.0),
            entropy=entropy,
            mean_logits=logits.mean(-1),
        )


def trl_s_loss(policy, reference, batch, desirable_weight):
    """TRL's loss of our rows and what it reports, of rows in the opposite order.

    TRL lets each response follow the prompt after its own, the paper and we the one before.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
    examples = [
        {
            "prompt_ids": ids[:start].tolist(),
            "completion_ids": ids[start:end].tolist(),
            "label": label,
        }
        for ids, start, end, label in zip(
            batch.input_ids,
            batch.prompt_lengths.tolist(),
            batch.lengths.tolist(),
            batch.desirable.tolist(),
            strict=True,
        )
    ][::-1]
    completions = [example["completion_ids"] for example in examples]
    for example, other in zip(examples, [completions[-1], *completions[:-1]], strict=True):
        example["KL_completion_ids"] = other
    inputs = DataCollatorForUnpairedPreference(pad_token_id=0)(examples)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=lambda value: value.reshape(-1)
    )
    trainer = SimpleNamespace(
        model=FusedHead(policy),
        ref_model=FusedHead(reference),
        accelerator=accelerator,
        args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
        calculate_KL=True,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        loss_type="kto",
        beta=0.1,
        desirable_weight=desirable_weight,
        undesirable_weight=1.0,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = lambda model, given: KTOTrainer._compute_kl_logps(
        trainer, model, given
    )
    loss = KTOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    return loss, trainer._metrics["train"]


@pytest.mark.parametrize(
    "labels", [[True, False, True, False, True], [True] * 5, [False] * 5], ids=str
)
def test_kto_is_trl_s_loss_with_trl_s_gradient(labels):
    """In fp64, also where a response under another prompt is longer than any row of the batch."""
    policy, reference = tiny_policy().double(), tiny_policy(seed=5).double()
    vocabulary = policy.config.vocab_size
    given = [
        {
            "prompt": f"Q{n}" + "?" * (7 * (n % 2)),
            "completion": " a" * (9 - 4 * (n % 2)),
            "label": label,
        }
        for n, label in enumerate(labels)
    ]
    batch = RowCollator(byte_tokenizer(), TokenizationOptions(max_length=64))(given)
    batch.input_ids %= vocabulary
    assert batch.mismatched().input_ids.shape[1] > batch.input_ids.shape[1]
    models = Models(policy, {"reference": FrozenModel(reference)})
    objective = Objective(UniformImportance(), "mean", {"kto": KTOLoss(0.1, 1.5)}, {})
    found = objective.evaluate(models, batch)
    ours = torch.autograd.grad(found.loss.mean(), list(policy.parameters()))
    loss, reported = trl_s_loss(policy, reference, batch, desirable_weight=1.5)
    theirs = torch.autograd.grad(loss, list(policy.parameters()))
    assert reported["kl"][0] > 0.01
    torch.testing.assert_close(found.loss.mean(), loss, rtol=1e-9, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("loss", [KTOLoss(), BCOLoss()], ids=["kto", "bco"])
def test_it_trains_validates_and_predicts(model_folder, data, loss):
    recorder = Recorder()
    module = make_module(model_folder, losses={"unpaired": loss})
    trainer = quiet_trainer(max_steps=6, callbacks=[recorder], limit_val_batches=1.0)
    trainer.fit(module, data)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert first["train/rewards/chosen"] == pytest.approx(0.0, abs=1e-6)
    gap = last["train/rewards/chosen"] - last["train/rewards/rejected"]
    assert gap > 0.01
    (found,) = quiet_trainer(limit_val_batches=1.0).validate(module, data, verbose=False)
    # Four of the five are desirable.
    means = (4 * found["val/rewards/chosen"] + found["val/rewards/rejected"]) / 5
    assert found["val/rewards/mean"] == pytest.approx(means, abs=1e-6)
    assert not {name for name in found if "margins" in name or "accuracies" in name}
    predictions = quiet_trainer().predict(module, data)
    told = [row for each in predictions for row in prediction_rows(each, None)]
    assert [row["label"] for row in told] == [row["label"] for row in rows(5, 100)]
    assert {row["role"] for row in told} == {"response_1"}


def test_importance_weighs_the_tokens_of_single_responses(model_folder, data):
    """With weights of mean 1, the weighted sum of log-ratios differs from the plain one."""
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    models = Models(tiny_policy(), {"reference": FrozenModel(tiny_policy(seed=1))})
    batch.input_ids %= models.policy.config.vocab_size
    losses = {"plain": BCOLoss(beta=0.1), "weighted": BCOLoss(beta=0.1, weighted=True)}
    found = Objective(RandomImportance(), "mean", losses, {}).evaluate(models, batch)
    rows_, weights = found.context.responses, found.weights
    ratios = (rows_.log_ratios * weights).sum(-1)
    rewards = 0.1 * ratios
    sign = torch.where(batch.desirable, 1.0, -1.0)
    expected = -(sign * (rewards - rewards.mean())).sigmoid().log()
    torch.testing.assert_close(found.losses["weighted"], expected)
    assert (found.losses["weighted"] - found.losses["plain"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "losses",
    [{"dpo": DPOLoss()}, {"triplet": TripletLoss()}, {"ranks": PlackettLuceLoss()}, None],
    ids=["dpo", "triplet", "plackett_luce", "default"],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_losses_that_compare_responses_are_refused_at_set_up(
    model_folder, source, losses, streaming
):
    data = make_data(source, model_folder, streaming=streaming)
    with pytest.raises(InputError, match=r"compares the responses.*the losses kto or bco, or put"):
        quiet_trainer(max_steps=1).fit(make_module(model_folder, losses=losses), data)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [({"batch_size": 1}, "batch_size=1"), ({"eval_batch_size": 1}, "eval_batch_size=1")],
)
def test_batches_of_one_are_told_of_where_the_loss_is_another_one_then(
    model_folder, source, sizes, told
):
    data = make_data(source, model_folder, **sizes)
    words = rf"loss 'kto' gets batches of one prompt \(data.{told}\): .* as in apo_zero_unpaired"
    with pytest.warns(UserWarning, match=words):
        quiet_trainer(max_steps=0).fit(make_module(model_folder, losses={"kto": KTOLoss()}), data)


def test_what_is_of_pairs_cannot_be_watched(model_folder, data):
    saver = ModelCheckpoint(monitor="val/rewards/accuracies")
    trainer = quiet_trainer(max_steps=1, enable_checkpointing=True, callbacks=[saver])
    with pytest.raises(InputError, match="ModelCheckpoint watches 'val/rewards/accuracies'"):
        trainer.fit(make_module(model_folder, losses={"kto": KTOLoss()}), data)


def test_the_page_of_a_run_tells_labels_and_rewards_by_label(model_folder, data, tmp_path):
    pytest.importorskip("matplotlib")
    options = {"limit_val_batches": 1.0, "val_check_interval": 1, "default_root_dir": tmp_path}
    trainer = quiet_trainer(max_steps=1, callbacks=[ReportPage()], **options)
    trainer.fit(make_module(model_folder, losses={"kto": KTOLoss()}), data)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {*re.findall(r'<section data-role="(\w+)"', page)} == {
        "prompt",
        "desirable",
        "undesirable",
    }
    assert {"train/rewards/chosen", "val/rewards/rejected"} <= {
        *re.findall(r"<!-- (\w+/\w+/\w+) -->", page)
    }


def test_sft_is_refused(model_folder, data):
    with pytest.raises(InputError, match="sft trains on the chosen responses of pairs"):
        quiet_trainer(max_steps=1).fit(SFTModule(PolicyConfig(path=model_folder)), data)


def test_a_stream_trains_as_the_table_does(model_folder, source):
    parameters = []
    for streaming in (False, True):
        recorder = Recorder()
        module = make_module(model_folder, losses={"bco": BCOLoss()}, optimizer=SGD)
        options = {"shuffle_buffer": 1} if streaming else {}
        data = make_data(source, model_folder, streaming=streaming, batch_size=12, **options)
        quiet_trainer(max_steps=1, callbacks=[recorder]).fit(module, data)
        parameters.append(recorder.parameters[-1])
    assert_same(*parameters, atol=1e-5)


@pytest.mark.slow
def test_a_step_of_two_processes_is_that_of_one(model_folder, source, tmp_path):
    words = ["-m", "modules.single_response_run", model_folder, source, str(tmp_path / "found")]
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one = run(model_folder, source, devices=1)
    assert one.metrics[-1].keys() >= {"train/rewards/chosen", "train/logps/rejected"}
    for rank in (0, 1):
        parameters, logged = torch.load(tmp_path / f"found.{rank}")
        assert_same(parameters, one.parameters[-1], atol=1e-6)
        assert_same(logged, one.metrics[-1], atol=3e-5)


def test_memory_is_not_estimated_of_single_responses(data):
    with pytest.raises(InputError, match="memory is estimated of pairs"):
        largest_batch(data)


def test_pairs_and_single_responses_are_kept_apart(model_folder, source, tmp_path):
    pair = {"prompt": "Q", "chosen": " a", "rejected": " b"}
    both = RowCollator(byte_tokenizer())
    with pytest.raises(InputError, match="are pairs and single responses"):
        both([pair, rows(1)[0]])
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    sources = [{"source": str(tmp_path / "pairs.jsonl")}, {"source": source}]
    with pytest.raises(InputError, match="hold pairs here, single responses there"):
        make_data(sources, model_folder).setup("fit")
    mixed = [{**pair, "completion": None, "label": None}, {**dict.fromkeys(pair), **rows(1)[0]}]
    with pytest.raises(InputError, match="row 1 holds a single response with a label, others do"):
        make_data(mixed, model_folder).prepare_data()
