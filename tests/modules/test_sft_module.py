"""Supervised fine-tuning: the loss of transformers, every token alike."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_tidpo.errors import NonFiniteError
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.sft import SFTModule

from .runs import QUIET, SGD, Recorder, assert_same, every_step, make_data, quiet_trainer

pytestmark = QUIET


@pytest.fixture
def make(model_folder):
    def module(**options):
        config = PolicyConfig(path=model_folder, **options.pop("policy", {}))
        return SFTModule(config, **{"optimizer": SGD, **options})

    return module


@pytest.fixture
def fit(make, source, model_folder):
    def run(data, ckpt_path=None, module=None, callbacks=(), **trainer):
        recorder = Recorder()
        module = module or make()
        quiet_trainer(callbacks=[*callbacks, recorder], **trainer).fit(
            module, make_data(source, model_folder, **data), ckpt_path=ckpt_path
        )
        return recorder

    return run


def labelled(model, batches):
    """The loss of transformers on the chosen rows, prompt and padding labelled -100."""
    rows = [
        (ids[:length], int(prompt))
        for batch in batches
        for ids, prompt, length in zip(
            batch.input_ids[: batch.size], batch.prompt_lengths, batch.lengths, strict=False
        )
    ]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, prompt : len(tokens)] = tokens[prompt:]
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.mark.parametrize(
    ("data", "accumulated"),
    [
        pytest.param({"batch_size": 4}, 1, id="one batch"),
        pytest.param({"batch_size": 1}, 4, id="accumulated"),
        pytest.param({"batch_size": 2, "max_rows": 5}, 2, id="short last window"),
    ],
)
def test_the_loss_is_that_of_transformers(fit, model_folder, data, accumulated):
    recorder = fit(data, max_epochs=1, accumulate_grad_batches=accumulated)
    sizes = {
        int(length - prompt)
        for batch in recorder.windows[0]
        for prompt, length in zip(batch.prompt_lengths, batch.lengths, strict=True)
    }
    assert len(sizes) > 1  # a mean over examples would be another number
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    optimizer = SGD(model.parameters())
    for window, metrics, after in zip(
        recorder.windows, recorder.metrics, recorder.parameters, strict=True
    ):
        optimizer.zero_grad()
        loss = labelled(model, window)
        loss.backward()
        optimizer.step()
        assert metrics["train/loss"] == pytest.approx(loss.item(), abs=1e-5)
        expected = {f"policy.{name}": value.detach() for name, value in model.named_parameters()}
        assert_same(after, expected, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_validation_weighs_every_token_alike(make, source, model_folder, batch_size):
    data = make_data(source, model_folder, eval_batch_size=batch_size)
    trainer = quiet_trainer(limit_val_batches=1.0)
    (found,) = trainer.validate(make(), data, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    with torch.no_grad():
        expected = labelled(model, list(data.val_dataloader()))
    assert set(found) == {"val/loss"}
    assert found["val/loss"] == pytest.approx(expected.item(), abs=1e-5)
    tested = make_data(source, model_folder, test_split="validation")
    (result,) = quiet_trainer().test(make(), tested, verbose=False)
    assert result["test/loss"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # saved nothing on
def test_resuming_equals_the_uninterrupted_run(fit, make, tmp_path):
    options = {"policy": {"disable_dropout": False}, "lr_schedule": "linear", "warmup_steps": 1}
    trainer = {"max_epochs": 2, "gradient_clip_val": 1.0}
    whole = fit({}, module=make(**options), **trainer, **every_step(tmp_path))
    assert len(whole.metrics) == 6
    for stop in (2, 3):
        path = str(tmp_path / f"step={stop}.ckpt")
        rest = fit({}, path, make(**options), **trainer)
        assert rest.rows == whole.rows[stop:]
        assert rest.metrics == whole.metrics[stop:]
        assert_same(rest.parameters[-1], whole.parameters[-1])


def test_activation_checkpointing_changes_nothing(fit, make):
    plain = fit({}, max_steps=2)
    checkpointed = fit({}, module=make(policy={"activation_checkpointing": True}), max_steps=2)
    assert_same(plain.gradients[-1], checkpointed.gradients[-1], atol=1e-7)


def test_a_loss_that_is_not_finite_stops(make, data):
    module = make()
    module.configure_model()
    embeddings = module.policy.get_input_embeddings()
    embeddings.register_forward_hook(lambda layer, ids, output: output * torch.nan)
    with pytest.raises(NonFiniteError, match="NaN or infinite for the pairs"):
        quiet_trainer(max_steps=1).fit(module, data)
