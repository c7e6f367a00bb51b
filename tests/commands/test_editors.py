"""Completion, as a shell does it, and the schema, by a validator of its own."""

import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from lit_tidpo.cli import main
from lit_tidpo.commands.schema import schema

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """What the command prints for bash, in a file."""
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    file = tmp_path_factory.mktemp("completion") / "script"
    with file.open("w") as stream, redirect_stdout(stream):
        main(["completion", "bash"])
    return file


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], {"fit"}),
        (["sft", "v"], {"validate"}),
        (["fit", "--model.policy.d"], {"--model.policy.dtype", "--model.policy.disable_dropout"}),
        (["fit", "--model.weight_scale", "m"], {"mean", "max"}),
        (["predict", "--model.importance", "gradient_l"], {"gradient_log_ratio"}),
        (["sft", "fit", "--data.so"], {"--data.source"}),
        (["export", "--d"], {"--dtype"}),
        (["explain", "--pr"], {"--prompt"}),
        (["audit", "model", "words.json", "--res"], {"--resamples"}),
        (["evaluate", "--num"], {"--num_fewshot"}),
        (["evaluate", "--chat", "f"], {"false"}),
        (["convert", "--o"], {"--output"}),
        (["estimate", "--mem"], {"--memory"}),
        (["estimate", "--data.so"], {"--data.source"}),
        (["data", "--against", "r"], {"random"}),
        (["plugins", "--n"], {"--needs"}),
        (["schema", "pre"], {"predict"}),
    ],
)
def test_bash_completes(script, words, expected):
    program = (
        f"source {script}; COMP_WORDS=(lit-tidpo {' '.join(words)}); "
        f"COMP_CWORD={len(words)}; _shtab_lit_tidpo lit-tidpo {words[-1]}; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == expected


def test_completion_names_the_shells(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["completion", "cmd"])
    assert "'bash'" in capsys.readouterr().err


@pytest.fixture
def problems():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema("fit"))
    return lambda text: [error.message for error in validator.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize(
    "file", [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("ablations/*.yaml")], ids=lambda f: f.name
)
def test_the_shipped_configurations_fit_the_schema(problems, file):
    if not file.name.startswith("sft"):
        assert problems(file.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "model: {sead: 1}",
        "model: {seed: many}",
        "model: {weight_scale: median}",
        "data: {streaming: 3}",
        "trainer: {max_step: 3}",
        "resume: true",
    ],
)
def test_what_the_parser_would_refuse_does_not(problems, text):
    assert len(problems(text)) == 1


def test_more_ways_to_write_what_the_parser_reads(problems):
    """A dotted key, a file for a group, nothing, and classes by name or with arguments."""
    text = (
        "model.seed: 3\ndata: data.yaml\ntrainer:\nmodel: {importance: mine.Own, losses: {a: dpo}}"
    )
    assert problems(text) == []


def test_the_command_prints_it(capsys):
    main(["schema", "sft", "fit"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == schema("fit", sft=True)
    assert "importance" not in printed["properties"]["model"]["properties"]
    with pytest.raises(SystemExit):
        main(["schema", "sft", "predict"])
    assert "schema takes a command" in capsys.readouterr().err
