"""Help of a command: our own options first, the Trainer's behind, within a moment."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from lit_tidpo.commands.option_sources import Option
from lit_tidpo.commands.options import FUNCTIONS, TRAINING, command_options, function_options

_ABOUT = {
    "fit": "Train on preference pairs.",
    "validate": "Measure on the validation split.",
    "test": "Measure on the test split.",
    "predict": "Write log-probs and importance weights of every response token.",
}
_EXAMPLES = {
    "fit": "--model.importance gradient --run first --resume",
    "validate": "--run first",
    "test": "--data.test_split validation --run first --ckpt_path best",
    "predict": "--run first --tokens.path tokens.jsonl",
}
_TITLES = {
    "": "The run",
    "model": "The model, its losses and its optimizer",
    "data": "The data",
    "tokens": "What predict writes",
    "trainer": "Lightning's Trainer",
}
_FUNCTIONS = {
    "export": (
        "Write a checkpoint's policy for AutoModelForCausalLM; adapters are merged.",
        "runs/.../last.ckpt exported --dtype bfloat16",
    ),
    "explain": (
        "Write a page that shows prompts and responses, token by token.",
        "runs/.../last.ckpt --pairs 20 --importance.mine gradient",
    ),
    "audit": (
        "Tell which tokens and classes of words carry the weight over a data set.",
        "runs/.../last.ckpt words.json --pairs 500",
    ),
    "evaluate": (
        "Run benchmarks of lm-evaluation-harness, beside those of the model that a run began with.",
        "runs/.../last.ckpt gsm8k,ifeval --limit 100",
    ),
    "data": (
        "Print what a run would see of a data set; --shapes alone prints what rows may be.",
        "pairs.jsonl builtin:policy --max_length 512",
    ),
}
"""What a command that is a function does, and an example."""
_CONVERT = """\
usage: lit-tidpo convert [--output FILE] [--rows N] FILE
       lit-tidpo convert [--output FILE] [--rows N] COMMAND LINE

Write the configuration of `lit-tidpo fit` that a YAML of TRL (`trl dpo`) or LLaMA-Factory (stage
dpo or kto) stands for, the defaults there included, and tell what becomes of each option.

  lit-tidpo convert dpo.yaml --output mine.yaml
  lit-tidpo convert --output mine.yaml trl dpo --config dpo.yaml --beta 0.2
  lit-tidpo convert --output mine.yaml llamafactory-cli train dpo.yaml learning_rate=1e-5
  lit-tidpo fit --config mine.yaml

  --output FILE
        File to write; by default the configuration is printed, and the rest to the standard error.
  --rows N
        Number of training rows, which options that are a share of the run, as warmup_ratio, need.

It ends with status 0; 1 where an option has no counterpart, which is told with what to do; 2 where
nothing could be written, as of unknown options. docs/from_trl.md has all options.
"""
_COMPONENTS = """\
An option that holds a class takes its name and, below it, its arguments: --model.importance
gradient --model.importance.norm l1. `lit-tidpo plugins` lists the names, and
--model.importance.help=gradient the arguments of one. In a YAML, names are nested at their dots."""


def training_page(command: str, sft: bool) -> str:
    """Help of a command that runs a Trainer.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        sft: Whether it stands behind ``sft``.
    """
    name = f"lit-tidpo {'sft ' * sft}{command}"
    example = "" if sft and command == "fit" else f" {_EXAMPLES[command]}"
    config = "configs/sft_stdlib.yaml" if sft else "configs/quickstart.yaml"
    groups = command_options(command, sft)
    if command != "predict":
        groups.pop("tokens", None)
    lines = [
        f"usage: {name} [--config FILE ...] [OPTIONS]",
        "",
        _ABOUT[command],
        "",
        f"  {name} --config {config}{example}",
        "",
        _COMPONENTS,
    ]
    for prefix, options in groups.items():
        lines += ["", f"{_TITLES[prefix]}:", *_lines(options, whole=prefix != "trainer")]
    return "\n".join([*lines, ""])


def function_page(command: str) -> str:
    """Help of a command that is a function.

    Args:
        command: One of :data:`~lit_tidpo.commands.options.FUNCTIONS`.
    """
    about, example = _FUNCTIONS[command]
    options = function_options(command)
    places = [option for option in options if option.default is None]
    others = [option for option in options if option.default is not None]
    lines = [
        f"usage: lit-tidpo {command} {' '.join(each.name.upper() for each in places)} [OPTIONS]",
        "",
        about,
        "",
        f"  lit-tidpo {command} {example}",
        "",
        *(f"  {each.name.upper()}\n{_wrapped(_plain(each.text))}" for each in places),
        *_lines(others, whole=True),
    ]
    return "\n".join([*lines, ""])


def page(words: list[str]) -> str | None:
    """The page that these words ask for; None where it is the one of all commands.

    Args:
        words: All words of a command, ``--help`` among them.
    """
    sft = words[0] == "sft"
    command = next((word for word in words[sft:] if not word.startswith("-")), "")
    if command in TRAINING[: 3 if sft else 4]:
        return training_page(command, sft)
    if command == "convert":
        return _CONVERT
    return function_page(command) if command in FUNCTIONS else None


def _lines(options: Iterable[Option], whole: bool) -> Iterator[str]:
    """Name, kind and default of each option, and below them what it is."""
    for option in options:
        if option.linked:
            continue
        default = {None: "  (required)", "": "", "None": ""}.get(
            option.default, f"  (default: {option.default})"
        )
        yield f"  --{option.name} {option.kind}".rstrip() + default
        text = _plain(option.text)
        yield _wrapped(text if whole else re.split(r"(?<=\.)\s+(?=[A-Z])", text)[0])


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "")


def _wrapped(text: str) -> str:
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    return textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
