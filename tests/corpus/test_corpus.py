"""Bad inputs end in the expected words and status 2, and nothing that existed is changed."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

import lit_tidpo
import lit_tidpo.commands.training  # datasets logs to the stderr of its import
from lit_tidpo.cli import main

ENTRIES = yaml.safe_load(Path(__file__).with_name("inputs.yaml").read_text(encoding="utf-8"))
ROWS = [{"prompt": f"f{i}(", "chosen": f"{i})", "rejected": f"{i + 1})"} for i in range(4)]
MODEL = Path(lit_tidpo.__file__).parent / "assets" / "policy"


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepare(folder: Path, entry: dict) -> None:
    """Write an entry's files."""
    files = {"rows.jsonl": jsonl(entry.get("rows", ROWS)), **entry.get("files", {})}
    contents = {name: text.encode() for name, text in files.items()}
    contents |= {name: bytes.fromhex(digits) for name, digits in entry.get("hex", {}).items()}
    if files["rows.jsonl"] == "NESTED":
        contents["rows.jsonl"] = b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if "model" in entry:
        shutil.copytree(MODEL, folder / "model")
        for name, text in entry["model"].items():
            file = folder / "model" / name
            if text is None:
                file.unlink()
            elif text == "CUT":
                file.write_bytes(file.read_bytes()[:-1000])
            else:
                file.write_text(text)


def command(entry: dict) -> list[str]:
    """Words of an entry's command."""
    if "command" in entry:
        return entry["command"]
    usual = {
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 1,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.limit_val_batches": 0,
        "model.policy.path": "./model" if "model" in entry else "builtin:policy",
        "model.policy.init": "random",
        "data.source": "rows.jsonl",
        "data.batch_size": 2,
    }
    given = {**usual, **entry.get("args", {})}
    given.setdefault("model.losses", '{"preference": "dpo"}')
    # A mapping stands before the options of its entries.
    ordered = sorted(given.items(), key=lambda option: option[0].count(".") > 1)
    return ["fit", *(f"--{name}={_word(value)}" for name, value in ordered)]


def _word(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f".{value}"  # as YAML has it
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["name"] for entry in ENTRIES])
def test_a_bad_input_ends_in_the_expected_words(entry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    prepare(tmp_path, entry)
    before = digests(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(command(entry))
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert re.search(entry["words"], " ".join(shown.split()), re.DOTALL), shown[-1500:]
    assert before.items() <= digests(tmp_path).items()


def test_there_are_as_many_as_promised_and_none_twice():
    names = [entry["name"] for entry in ENTRIES]
    assert len(names) == len(set(names)) >= 120
