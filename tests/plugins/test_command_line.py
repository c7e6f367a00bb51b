"""Plugins through the command: the shipped third party's, those of CONTRIBUTING.md, broken ones."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import copier
import pytest
import yaml
from fake_distributions import ESTIMATOR, FakeSite

from lit_tidpo.cli import main
from lit_tidpo.plugins.parser import PluginArgumentParser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^`(lit-tidpo-[^`]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.M | re.S))
PLUGINS = ("surprisal", "ablation", "vllm")
MADE = {"twice_surprising": "importance", "hinge_margin": "losses"}  # of plugins/template, by kind
REQUIRED = ["--model.policy.path=builtin:policy", "--data.source=builtin:stdlib_defects"]


@pytest.fixture(scope="module")
def third_parties(tmp_path_factory):
    """Folder with the sources of third-party packages, installed into its folder `site`."""
    folder = tmp_path_factory.mktemp("third_parties")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    for name in PLUGINS:
        shutil.copytree(ROOT / "plugins" / name, folder / name, ignore=ignored)
    for name, kind in MADE.items():
        given = {"kind": kind, "name": name}
        copier.run_copy(
            str(ROOT / "plugins" / "template"), folder / name, given, defaults=True, quiet=True
        )
    for name, text in RECIPES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    packages = [str(path.parent) for path in sorted(folder.glob("*/pyproject.toml"))]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    install = ["-m", "pip", "install", *options, "--target", str(folder / "site"), *packages]
    subprocess.run([sys.executable, *install], check=True, cwd=folder)
    return folder


@pytest.fixture
def run(third_parties):
    """Run Python in a new process that finds the third-party packages."""

    def run(*args, cwd=third_parties):
        path = os.pathsep.join([str(third_parties / "site"), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, *args],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": path},
        )

    return run


@pytest.fixture
def site(tmp_path, monkeypatch):
    return FakeSite(tmp_path, monkeypatch)


def printed(capsys, *args):
    """The configuration that a command prints."""
    with pytest.raises(SystemExit) as stopped:
        main([*args, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def rows(listing):
    """Cells of each plugin's line by name; the state is the rest of the line."""
    cells = [line.split(None, 5) for line in listing.splitlines()[1:]]
    return {row[1]: row for row in cells}


# Packages of third parties


@pytest.mark.slow
def test_the_core_lists_and_runs_a_plugin_that_it_does_not_know(run):
    listing = run("-m", "lit_tidpo", "plugins")
    assert listing.returncode == 0, listing.stderr
    value = "lit_tidpo_surprisal.surprisal:ClippedSurprisalImportance"
    name = "clipped_surprisal"
    expected = ["lit_tidpo.importance", name, value, "lit-tidpo-surprisal", "0.1.0", "ok"]
    assert rows(listing.stdout)[name] == expected
    for other in ("ablation", *MADE):
        owner = f"lit-tidpo-{other}".replace("_", "-")
        assert rows(listing.stdout)[other][3:] == [owner, "0.1.0", "ok"]

    choice = ["--model.importance", name, "--model.importance.power", "2"]
    fit = run("-m", "lit_tidpo", "fit", *REQUIRED, *choice, "--print_config")
    assert fit.returncode == 0, fit.stderr
    assert yaml.safe_load(fit.stdout)["model"]["importance"] == {
        "class_path": f"lit_tidpo.importance.{name}",
        "init_args": {"power": 2.0, "clip": None},
    }
    assert fit.stderr == ""  # a run whose options are in order warns of nothing


@pytest.mark.slow
def test_the_third_parties_own_tests_pass(run):
    names = [*PLUGINS, *MADE, "lit-tidpo-divergence", "lit-tidpo-exponential"]
    tests = [f"{name}/tests" for name in names]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_no_line_of_the_core_knows_the_third_party():
    files = [path for path in (ROOT / "lit_tidpo").rglob("*") if path.suffix in (".py", ".toml")]
    assert len(files) > 40
    for path in [*files, ROOT / "pyproject.toml"]:
        text = path.read_text(encoding="utf-8")
        foreign = re.search(r"clipped.?surprisal|ablation_importance|AblationImp", text)
        assert foreign is None, path


# The recipes of CONTRIBUTING.md


def test_each_recipe_prints_a_whole_package():
    assert list(RECIPES) == [
        "lit-tidpo-divergence/pyproject.toml",
        "lit-tidpo-divergence/lit_tidpo_divergence.py",
        "lit-tidpo-divergence/tests/test_divergence.py",
        "lit-tidpo-exponential/pyproject.toml",
        "lit-tidpo-exponential/lit_tidpo_exponential.py",
        "lit-tidpo-exponential/tests/test_exponential.py",
    ]


@pytest.fixture
def recipes(third_parties, monkeypatch):
    monkeypatch.syspath_prepend(third_parties / "site")


@pytest.mark.slow
@pytest.mark.usefixtures("recipes")
def test_the_commands_of_the_recipes_choose_their_components(capsys, tmp_path):
    commands = re.findall(r"^lit-tidpo (fit .*?[^\\])$", PAGE, re.M | re.S)
    assert len(commands) == 2
    first, second = (
        printed(capsys, *shlex.split(command.replace("\\\n", " ")))["model"] for command in commands
    )
    divergence = {"class_path": "lit_tidpo.importance.divergence", "init_args": {"floor": 0.05}}
    exponential = {
        "class_path": "lit_tidpo.losses.exponential",
        "init_args": {"weighted": True, "beta": 0.1},
    }
    assert first["importance"] == divergence
    assert second["losses"] == {"preference": exponential}

    config = tmp_path / "config.yaml"
    (inline,) = re.findall(r"^In a configuration: `(.*?)`", PAGE, re.M)
    config.write_text(inline, encoding="utf-8")
    model = printed(capsys, "fit", *REQUIRED, f"--config={config}")["model"]
    assert model["importance"] == divergence
    (block,) = re.findall(r"^In a configuration:\n\n```yaml\n(.*?)```", PAGE, re.M | re.S)
    config.write_text(block, encoding="utf-8")
    model = printed(capsys, "fit", *REQUIRED, f"--config={config}")["model"]
    assert model["losses"]["preference"] == exponential
    assert model["losses"]["triplet"]["class_path"] == "lit_tidpo.losses.triplet"


@pytest.mark.slow
@pytest.mark.usefixtures("recipes")
def test_a_sampler_is_chosen_by_its_class_path(capsys):
    choice = ["--model.sampler=lit_tidpo_vllm.VLLMSampler", "--model.sampler.path=somewhere"]
    sampler = printed(capsys, "fit", *REQUIRED, *choice)["model"]["sampler"]
    assert sampler["class_path"] == "lit_tidpo_vllm.VLLMSampler"
    assert (sampler["init_args"]["path"], sampler["init_args"]["sync_steps"]) == ("somewhere", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("recipes")
def test_the_listing_shows_the_lines_that_the_recipes_print(capsys):
    main(["plugins"])
    listing = rows(capsys.readouterr().out)
    blocks = re.findall(r"^```text\n(.*?)```", PAGE, re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        for name, row in rows(block).items():
            assert listing[name] == row


# Broken plugins


def test_the_listing_shows_what_is_wrong_with_a_plugin_and_goes_on(capsys, site):
    site.add(
        "poor-work", "0.7", {"poor_work": "import not_there"}, losses={"a_poor": "poor_work:X"}
    )
    for name in ("first", "second"):
        text = ESTIMATOR.format(name="Twin")
        site.add(name, modules={name: text}, importance={"twin": f"{name}:Twin"})
    main(["plugins"])
    out = capsys.readouterr().out
    listing = rows(out)
    assert listing["a_poor"][:5] == [
        "lit_tidpo.losses",
        "a_poor",
        "poor_work:X",
        "poor-work",
        "0.7",
    ]
    assert "ModuleNotFoundError: No module named 'not_there'" in listing["a_poor"][5]
    assert out.count("registered by first 1.0 and second 1.0") == 2  # a line for each of the two
    assert listing["weighted_dpo"][5] == "ok"


@pytest.mark.parametrize("args", [["importance"], ["--needs", "importance"]])
def test_the_listing_takes_no_other_arguments(capsys, args):
    with pytest.raises(SystemExit) as stopped:
        main(["plugins", *args])
    assert stopped.value.code == 2
    assert "plugins takes --needs, --json or nothing" in capsys.readouterr().err


def test_the_listing_shows_a_plugin_that_a_module_hides(capsys, site):
    text = ESTIMATOR.format(name="Third")
    site.add("thirds", modules={"thirds": text}, losses={"triplet_loss": "thirds:Third"})
    main(["plugins"])
    state = rows(capsys.readouterr().out)["triplet_loss"][5]
    assert "has the name of the module lit_tidpo.losses.triplet_loss" in state


POOR = {"poor_work": "raise OSError('no device')"}
CAUSE = "plugin 'poor' (poor_work:X) of poor-work 0.7 could not be imported: OSError: no device"


@pytest.mark.parametrize(
    "args", [["--model.importance=poor"], ["--model.importance", "poor", "--print_config"]]
)
def test_a_run_that_uses_a_broken_plugin_stops_with_one_error(capsys, site, args):
    site.add("poor-work", "0.7", POOR, importance={"poor": "poor_work:X"})
    with pytest.raises(SystemExit) as stopped:  # a warning besides the error would be an error here
        main(["fit", *REQUIRED, *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count(f"error: {CAUSE}") == 1
    assert error.count("no device") == 1
    assert "Traceback" not in error


def test_a_run_that_only_names_a_broken_plugin_warns_and_goes_on(capsys, site):
    site.add("poor-work", "0.7", POOR, importance={"poor": "poor_work:X"})
    # a missing checkpoint ends the run where models would be built
    args = ['--model.losses={"poor": "dpo"}', "--ckpt_path=nowhere.ckpt"]
    match = re.escape(f"{CAUSE}; this run does not use it")
    with pytest.warns(UserWarning, match=match), pytest.raises(SystemExit):
        main(["fit", *REQUIRED, *args])
    error = capsys.readouterr().err
    assert "nowhere.ckpt" in error
    assert "poor" not in error


def test_a_run_does_not_import_a_plugin_that_it_does_not_name(capsys, site):
    site.add("poor-work", "0.7", POOR, importance={"poor": "poor_work:X"})
    model = printed(capsys, "fit", *REQUIRED, "--model.importance=uniform")["model"]
    assert model["importance"]["class_path"] == "lit_tidpo.importance.uniform"
    assert not site.imported("poor_work")


def test_problems_of_one_run_are_forgotten_by_the_next(capsys, site):
    site.add("poor-work", "0.7", POOR, importance={"poor": "poor_work:X"})
    for name, problems in (("poor", {"poor": CAUSE}), ("uniform", {})):
        with pytest.raises(SystemExit):
            main(["fit", *REQUIRED, f"--model.importance={name}", "--print_config"])
        assert PluginArgumentParser.problems == problems


# A change of class over a shipped configuration


@pytest.mark.slow
def test_a_shipped_configuration_with_another_estimator(capsys):
    config = f"--config={ROOT / 'configs' / 'quickstart.yaml'}"
    inner = "--model.importance.estimator"
    args = [f"{inner}.model=reference", f"{inner}=attention"]
    model = printed(capsys, "fit", config, *args)["model"]
    assert model["importance"]["init_args"]["estimator"]["init_args"]["model"] == "policy"
    assert model["importance"]["init_args"]["mix"] == 0.7
    assert model["losses"]["triplet"]["class_path"] == "lit_tidpo.losses.triplet"
