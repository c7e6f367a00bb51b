"""Commands, configurations, code and links of all pages are what the code knows."""

import ast
import importlib
import itertools
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_tidpo.commands import estimate, options
from lit_tidpo.commands.audit import audit_pairs
from lit_tidpo.commands.data import show_data
from lit_tidpo.commands.evaluate import evaluate
from lit_tidpo.commands.explain import explain_pairs
from lit_tidpo.models.export import export_checkpoint
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")
FUNCTIONS = {
    "audit": audit_pairs,
    "data": show_data,
    "evaluate": evaluate,
    "explain": explain_pairs,
    "export": export_checkpoint,
}
LISTS = {"plugins": {"--json", "--needs"}, "completion": {"bash", "zsh", "tcsh"}, "schema": set()}


def blocks(*languages):
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (language, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
        if language in languages
    ]


def check(words):
    """Refuse a command of ours whose names or values are not there."""
    command = words[0]
    if command in FUNCTIONS:
        PluginArgumentParser.problems = load_named_plugins(words)
        parser = PluginArgumentParser(exit_on_error=False)
        parser.add_function_arguments(FUNCTIONS[command], as_positional=True)
        parser.parse_args(["--adapter=true" if word == "--adapter" else word for word in words[1:]])
    elif command == "convert":
        own = list(itertools.takewhile(lambda word: word not in ("trl", "accelerate"), words[1:]))
        assert {word for word in own if word.startswith("--")} <= {"--output", "--rows"}
    elif command in LISTS:
        assert set(words[1:]) <= LISTS[command]
    else:
        if command == "estimate":
            _, rest = estimate._parser().parse_known_args(words[1:])
            words = ["fit", *rest]
        PluginArgumentParser.problems = load_named_plugins(words)
        assert words[0] in {*options.TRAINING, "sft"}
        options.check_names(words)


@pytest.mark.parametrize("text", blocks("bash"))
def test_a_command_is_one(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["lit-tidpo"]:
            check(words[1:])
        elif words[:1] == ["make"]:
            assert set(words[1:]) <= targets


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_configuration_has_options_that_there_are(text, tmp_path):
    content = yaml.safe_load(text)
    if set(content) <= {"model", "data", "trainer"}:  # others are heads of model cards
        file = tmp_path / "page.yaml"
        file.write_text(text, encoding="utf-8")
        options.check_names(["fit", "--config", str(file)])


@pytest.mark.parametrize("text", blocks("python"))
def test_code_is_python(text):
    """Other tests run it, but for what needs the Hub; here, what it takes of us is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("lit_tidpo."):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), (node.module, name.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        place = Path(os.path.normpath(page.parent / target))
        assert place.exists(), target


def test_the_methods_to_choose_from_are_there():
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    table = text.partition("## By your data")[2].partition("\n\nA name stands")[0]
    rows = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / f"configs/methods/{name}.yaml").exists()] == []


def test_the_navigation_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w.]+\.md)$", text, re.M))
    there = {page.name for page in PAGES}
    assert there <= named
    assert named - there <= {"CHANGELOG.md"}
