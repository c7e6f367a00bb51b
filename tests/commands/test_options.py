"""Options told from the sources are those of the parser; help and wrong words import no torch."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from lit_tidpo.cli import main
from lit_tidpo.commands.options import TRAINING, command_options

WITHOUT_TORCH = """
import sys
from lit_tidpo.cli import main

for words in {commands}:
    try:
        main(words)
    except SystemExit as stopped:
        assert stopped.code == 2
assert not {{"torch", "lightning", "jsonargparse"}} & sys.modules.keys()
"""


class _BuiltError(Exception):
    pass


@pytest.fixture
def parsers(monkeypatch):
    """The parsers of all commands, of preference training or ``sft``."""
    from lightning.pytorch import LightningModule

    from lit_tidpo.commands.training import TidpoCLI

    def build(module: type[LightningModule]):
        built = []

        def keep(cli, parser, args):
            built.append(cli._subcommand_parsers)
            raise _BuiltError

        monkeypatch.setattr(TidpoCLI, "parse_arguments", keep)
        with pytest.raises(_BuiltError):
            TidpoCLI(module, "lit-tidpo", [], False, ExitStack())
        return built[0]

    return build


@pytest.mark.parametrize("sft", [False, True])
def test_the_names_are_those_that_the_parser_knows(parsers, sft):
    """Under the installed Lightning; holders of options and their help do not count."""
    from lit_tidpo import PreferenceModule, SFTModule

    for command, parser in parsers(SFTModule if sft else PreferenceModule).items():
        options = [each for group in command_options(command, sft).values() for each in group]
        known = {
            action.dest
            for action in parser._actions
            if action.option_strings and not action.dest.endswith(".help")
        }
        names = {each.name for each in options}
        holders = {name for name in known if any(n.startswith(f"{name}.") for n in names)}
        assert known - holders == names - {"resume"}, command  # which is taken out before


def test_the_page_has_our_options_first_with_defaults_and_a_command(capsys):
    main(["fit", "--help"])
    page = capsys.readouterr().out
    assert "lit-tidpo fit --config configs/quickstart.yaml" in page
    order = ["--config", "--model.policy.path", "--data.source", "--trainer.max_steps"]
    places = [page.index(f"\n  {name} ") for name in order]
    assert places == sorted(places)
    assert "--model.weight_scale {mean,sum,max,none}  (default: mean)" in page
    assert "--data.source str | list[dict[str, Any]]  (required)" in page
    assert "--data.tokenizer " not in page  # it follows the policy
    for command in TRAINING[1:]:
        main([command, "-h"])
        assert f"usage: lit-tidpo {command} " in capsys.readouterr().out
    main(["sft", "fit", "--help"])
    page = capsys.readouterr().out
    assert "--model.anchor" not in page
    assert "--tokens" not in page
    main(["export", "--help"])
    assert "usage: lit-tidpo export CHECKPOINT FOLDER" in capsys.readouterr().out


CONFIGURATION = """\
model: &model
  seed: 1
  losses: {preference: {class_path: dpo, init_args: {beta: 0.1}}}
data.seed: 3
trainer:
  <<: {max_epochs: 2}
  max_step: 3
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--trainer.max_step", "3"], "no option 'trainer.max_step' (did you mean 'trainer"),
        (["fit", "--trainer.callback+=X"], "did you mean 'trainer.callbacks'"),
        (["validate", "--modle.seed=3"], "did you mean 'model.seed'"),
        (["sft", "fit", "--model.importance=x"], "lit-tidpo sft fit --help lists all"),
        (["fit", "--config", "c.yaml"], "configuration 'c.yaml', line 7: no option 'trainer.max_s"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIGURATION)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_help_and_wrong_words_import_no_torch():
    commands = [
        [],
        ["--help"],
        ["fit", "--help"],
        ["export", "--help"],
        ["schema"],
        ["fot"],
        ["fit", "--trainer.max_step", "3"],
    ]
    program = WITHOUT_TORCH.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: lit-tidpo fit" in done.stdout


def test_the_mathematics_brings_torch_alone():
    program = (
        "import sys, torch; before = set(sys.modules); import lit_tidpo.functional\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new <= {'lit_tidpo', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
