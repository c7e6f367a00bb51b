"""Runs the documented examples of embedding, as they are printed."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:You defined a `validation_step` but have no",
)
def test_a_plain_trainer_a_foreign_module_and_the_functions_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    trainer_block, attach_block, rows_block, group_block, foreign_block, functional_block = blocks(
        "embedding.md"
    )
    exec(trainer_block, names)
    assert 0 <= names["trainer"].callback_metrics["val/rewards/accuracies"] <= 1
    exec(attach_block, names)
    assert names["module"].policy is names["model"]

    exec(rows_block, names)
    (own,) = names["data"].train_dataloader()
    for rows in (own, names["batch"]):
        decode = names["data"].tokenizer.decode
        texts = {decode(ids[:n]) for ids, n in zip(rows.input_ids, rows.lengths, strict=True)}
        assert "<s>def one(): return 1</s>" in texts
        assert len(texts) == 4

    exec(group_block, names)
    assert names["trainer"].callback_metrics["train/loss/list"] > 0

    exec(foreign_block, names)
    foreign = names["MyModule"]()
    trainer = names["L"].Trainer(
        max_steps=2, limit_val_batches=0, logger=False, enable_checkpointing=False
    )
    trainer.fit(foreign, names["loader"])
    reference = foreign.preference.models.others["reference"].model
    trained = dict(foreign.preference.policy.named_parameters())
    assert any(not torch.equal(trained[k], v) for k, v in reference.named_parameters())
    assert not any(isinstance(m, type(reference)) for m in _others(foreign))

    exec(functional_block, names)
    # by hand: weights 3 * (0.7 I + 0.3 P) with P = (0.2257, 0.5487, 0.2257)
    prior = [0.4111 / 1.8222, 1 / 1.8222, 0.4111 / 1.8222]
    expected = [3 * (0.7 * i + 0.3 * p) for i, p in zip([0.2, 0.5, 0.3], prior, strict=True)]
    margin = sum(w * d for w, d in zip(expected, [0.1, -0.4, 0.2], strict=True))
    torch.testing.assert_close(
        names["loss"], -nn.functional.logsigmoid(torch.tensor([0.1 * margin])), atol=1e-5, rtol=0
    )


def _others(module):
    """Language models in the tree besides the policy."""
    policy = module.preference.policy
    return [child for child in module.modules() if child is not policy]
