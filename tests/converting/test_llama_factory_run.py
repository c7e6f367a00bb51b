"""A converted run has the losses of LLaMA-Factory's own trainer, which wrote the numbers here.

LLaMA-Factory 0.9.5 on the CPU, with transformers 5.6.0, TRL 0.24.0 and torch 2.13, of these rows,
this model and its template ``deepseek``. It cannot be installed beside the transformers of the
other tests.
"""

import csv
import json
from pathlib import Path

import pytest
import yaml
from modules.runs import write_model

from lit_tidpo.cli import main

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n\n"
    "Assistant:{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
COMMON = {
    "model_name_or_path": "model",
    "stage": "dpo",
    "do_train": True,
    "finetuning_type": "full",
    "dataset": "rows",
    "dataset_dir": ".",
    "template": "deepseek",
    "cutoff_len": 64,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 1,
    "max_grad_norm": 0.5,
    "logging_steps": 1,
    "report_to": "none",
    "lr_scheduler_type": "cosine",
    "pref_beta": 0.3,
    "use_cpu": True,
    "output_dir": "out",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "theirs"),
    [
        ({"pref_ftx": 0.2}, [1.960465431213379, 1.960465431213379, 1.6596195697784424]),
        (
            {"pref_loss": "orpo", "pref_ftx": 0.2},
            [7.779064178466797, 7.779064178466797, 7.451545715332031],
        ),
    ],
    ids=["sigmoid", "orpo"],
)
def test_the_losses_are_theirs(tmp_path, monkeypatch, given, theirs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "model", attention_dropout=0.0)
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    rows = [
        {
            "conversations": [{"from": "human", "value": f"Q{i}?"}],
            "chosen": {"from": "gpt", "value": f"yes {i}"},
            "rejected": {"from": "gpt", "value": f"no {i}{i}"},
        }
        for i in range(4)
    ]
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    described = {"file_name": "rows.json", "formatting": "sharegpt", "ranking": True}
    Path("rows.json").write_text(json.dumps(rows))
    Path("dataset_info.json").write_text(json.dumps({"rows": {**described, "columns": columns}}))
    Path("theirs.yaml").write_text(yaml.safe_dump({**COMMON, **given}))
    main(["convert", "theirs.yaml", "--output", "ours.yaml"])
    main(["fit", "--config", "ours.yaml", "--trainer.enable_progress_bar", "false"])
    (metrics,) = Path("out").glob("lightning_logs/version_*/metrics.csv")
    with metrics.open(encoding="utf-8") as lines:
        found = [
            float(r["train/loss/total"]) for r in csv.DictReader(lines) if r["train/loss/total"]
        ]
    assert found == pytest.approx(theirs, abs=1e-5)
