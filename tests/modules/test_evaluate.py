"""Benchmarks of a checkpoint through lm-evaluation-harness, beside those of its start."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tidpo.cli import main

from .runs import LORA, NO_TRIPLET, QUIET, fit, make_data, make_module

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # the harness's

TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no!"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
QUESTIONS = [{"question": f"Q{number}?", "answer": number % 2} for number in range(6)]


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    (folder / "colours.yaml").write_text(TASK.format(rows=rows), encoding="utf-8")
    return str(folder)


@pytest.fixture
def checkpoint(model_folder, source, tmp_path):
    module = make_module(model_folder, policy=LORA, **NO_TRIPLET)
    fit(module, make_data(source, model_folder), tmp_path / "saved")
    return tmp_path / "saved" / "step=3.ckpt"


def accuracy(folder, count):
    """Share of right answers, by the log-probs of the answers in a plain forward pass."""
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    right = 0
    for row in QUESTIONS[:count]:
        sums = []
        for answer in (" yes", " no!"):
            prompt, whole = (
                tokenizer(text)["input_ids"] for text in (row["question"], row["question"] + answer)
            )
            with torch.no_grad():
                logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(logps[at - 1, whole[at]] for at in range(len(prompt), len(whole))))
        right += int(sums[1] > sums[0]) == row["answer"]
    return right / count


@pytest.mark.slow
def test_a_checkpoint_is_measured_beside_its_start(
    checkpoint, model_folder, tasks, tmp_path, capsys
):
    options = ["--include", tasks, "--limit", "5", "--chat", "false"]
    main(["evaluate", str(checkpoint), "[colours]", *options])
    main(["export", str(checkpoint), str(tmp_path / "exported")])
    found = json.loads((tmp_path / "saved" / "evaluation.json").read_text())
    assert found["policy"]["results"]["colours"]["acc,none"] == accuracy(tmp_path / "exported", 5)
    assert found["base"]["results"]["colours"]["acc,none"] == accuracy(model_folder, 5)
    assert found["settings"]["limit"] == 5
    table = capsys.readouterr().out
    assert "| task | measure | policy | base | difference |" in table
    assert f"| colours | acc | {accuracy(tmp_path / 'exported', 5):.3f} ±" in table


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mmmlu_"], r"tasks=\['mmmlu_'\] are not known"),
        (["[mmmlu_]"], r"tasks=\['mmmlu_'\] are not known"),
        (["[gsm8k]", "--limit", "0"], "limit=0: expected 1 or more"),
        (["[gsm8k]"], "base='start' is known of checkpoints alone"),
    ],
)
def test_what_cannot_be_run_is_told(model_folder, words, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", model_folder, *words])
    assert told.replace("\\", "") in capsys.readouterr().err


def test_the_missing_harness_is_named(model_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", model_folder, "[gsm8k]"])
    assert "pip install 'lit-tidpo[evaluate]'" in capsys.readouterr().err
