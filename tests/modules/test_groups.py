"""Groups of one to many ranked responses through a Trainer, from collation to prediction."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from lit_tidpo.data.collation import GroupCollator
from lit_tidpo.functional import sequence_sum
from lit_tidpo.losses.base import LossComponent, LossValues

from .runs import QUIET, Recorder, assert_same, make_module, quiet_trainer

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


class PlackettLuce(LossComponent):
    """Negative log-likelihood of the order of ranked responses, best first."""

    unit = "group"
    quantities = ("responses",)

    def __init__(self, with_reference=True, beta=0.1):
        self.with_reference = with_reference
        self.beta = beta

    @property
    def needs(self):
        return frozenset({"reference.logps"} if self.with_reference else ())

    def loss(self, context):
        rows = context.responses
        values = rows.log_ratios if self.with_reference else rows["policy.logps"]
        table, present = rows.batch.by_prompt(self.beta * sequence_sum(values, rows.mask))
        table = table.masked_fill(~present, -torch.inf)
        later = table.flip(-1).logcumsumexp(-1).flip(-1)
        loss = (later - table).masked_fill(~present, 0.0).sum(-1)
        return LossValues(loss, {"responses": present.sum(-1).float()})


def groups(count):
    """Prompts with two to five responses of various lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(length):
        return torch.randint(3, 200, (length,), generator=generator).tolist()

    return [
        {
            "prompt_ids": draw(3 + number % 3),
            "responses": [{"ids": [*draw(2 + (number + place) % 4), 2]} for place in range(size)],
            "index": number,
        }
        for number, size in zip(range(count), [2, 5, 3, 4] * count, strict=False)
    ]


def loader(count=8, batch_size=4):
    return DataLoader(groups(count), batch_size=batch_size, collate_fn=GroupCollator())


def run(model_folder, batch_size=4, with_reference=True, **trainer):
    recorder = Recorder()
    module = make_module(model_folder, losses={"list": PlackettLuce(with_reference)})
    options = {"max_steps": 6, "callbacks": [recorder], **trainer}
    quiet_trainer(**options).fit(module, loader(batch_size=batch_size))
    return module, recorder


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_listwise_loss_trains_and_its_order_improves(model_folder, with_reference):
    module, recorder = run(model_folder, with_reference=with_reference, max_steps=20)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert last["train/loss/list"] < first["train/loss/list"] - 0.1
    assert last["train/logps/accuracies"] > first["train/logps/accuracies"]
    assert first["train/list/responses"] == 3.5
    names = {"loss/total", "loss/list", "list/responses", "logps/mean", "logps/accuracies"}
    if with_reference:
        names |= {"rewards/mean", "rewards/accuracies"}
        assert first["train/rewards/mean"] == pytest.approx(0.0, abs=1e-6)
        assert first["train/rewards/accuracies"] == 0.5
    assert {name for name in first if name.startswith("train/")} == {f"train/{n}" for n in names}
    assert set(module.models.others) == ({"reference"} if with_reference else set())


def test_one_batch_is_its_accumulated_parts(model_folder):
    _, whole = run(model_folder, batch_size=4, max_steps=1)
    _, parts = run(model_folder, batch_size=2, max_steps=1, accumulate_grad_batches=2)
    assert_same(parts.gradients[0], whole.gradients[0], atol=2e-6)
    assert_same(parts.metrics[0], whole.metrics[0], atol=2e-5)


def test_groups_are_validated_and_predicted_response_by_response(model_folder):
    module, _ = run(model_folder)
    (found,) = quiet_trainer(limit_val_batches=1.0).validate(module, loader(), verbose=False)
    assert found["val/list/responses"] == 3.5
    predictions = quiet_trainer().predict(module, loader())
    seen = {}
    for prediction in predictions:
        for role in prediction.batch.roles:
            results = prediction.of_role(role)
            for place, index in enumerate(results.batch.index.tolist()):
                mask = results.mask[place]
                ids = results.batch.input_ids[place][mask].tolist()
                seen.setdefault(index, []).append(ids)
                assert results["weights"][place][mask].mean().item() == pytest.approx(1, abs=1e-5)
    expected = {g["index"]: [response["ids"] for response in g["responses"]] for g in groups(8)}
    assert seen == expected
