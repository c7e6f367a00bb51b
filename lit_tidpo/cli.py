"""The command ``lit-tidpo``: finds the module of the command that was typed, and tells errors."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from lit_tidpo.commands.help_page import page as help_page
from lit_tidpo.commands.options import check_names
from lit_tidpo.commands.quiet import quiet
from lit_tidpo.errors import InputError
from lit_tidpo.plugins.configurations import check_configurations

_REMEDIES = {
    errno.EMFILE: "raise the limit (ulimit -n), or lower data.num_workers",
    errno.ENOSPC: "make room, or name another folder (trainer.default_root_dir)",
    errno.EACCES: "name a folder that can be written (trainer.default_root_dir, data.cache_dir)",
    errno.EROFS: "name a folder that can be written (trainer.default_root_dir, data.cache_dir)",
}
"""What to do about what the system refuses."""

_USAGE = """\
usage: lit-tidpo COMMAND [OPTIONS]

  fit, validate, test, predict   preference optimisation (lit-tidpo fit --help)
  sft fit|validate|test          supervised fine-tuning on the chosen responses
  data SOURCE TOKENIZER          what a run would see of a data set; --shapes: rows that are read
  plugins                        importance estimators and losses that can be chosen
  plugins --json                 all that is known of each: needs, relative cost, source, unit
  plugins --needs                what estimators and losses can ask for
  estimate [--memory GB]         memory of each device that fit would take, from configs alone
  export CKPT FOLDER             write a checkpoint's policy for AutoModelForCausalLM
  explain MODEL [--source DATA]  page of the weight of every token, by several estimators
  audit MODEL LEXICON            which tokens and classes of words carry the weight of a data set
  evaluate CKPT TASK             benchmarks of lm-evaluation-harness, beside those of the start
  convert FILE --output FILE     a configuration of TRL or LLaMA-Factory (lit-tidpo convert --help)
  completion SHELL               for bash, zsh or tcsh: eval "$(lit-tidpo completion bash)"
  schema [COMMAND]               JSON schema of configurations, for editors

  --debug                        show where an error came from, and what other libraries say
  --known-classes                take no class from a configuration but ours, plugins, Lightning's
                                 and PyTorch's optimizers
"""

_MODULES = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), "training"),
    "sft": "training",
    "data": "data",
    "plugins": "plugins",
    "estimate": "estimate",
    "export": "export",
    "evaluate": "evaluate",
    "convert": "convert",
    "explain": "explain",
    "audit": "audit",
    "completion": "completion",
    "schema": "schema",
}
"""The module in :mod:`lit_tidpo.commands` that runs a command: its ``run`` gets all words."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: Arguments; None takes the process's own.

    Raises:
        SystemExit: With status 2 after an error that the user can mend.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug, known_classes = "--debug" in words, "--known-classes" in words
    words = [word for word in words if word not in ("--debug", "--known-classes")]
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return
    try:
        module = _module_of(words[0])
        if {"-h", "--help"} & {*words}:
            sys.stdout.write(help_page(words) or _USAGE)
            return
        check_configurations(words, known_classes)
        check_names(words)
        command = import_module(f"lit_tidpo.commands.{module}")
        with nullcontext() if debug else quiet():
            command.run(words)
    except (InputError, OSError) as error:
        if debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            line = f"{line}: {_REMEDIES[error.errno]}"
        sys.stderr.write(f"lit-tidpo: error: {line}\n")
        raise SystemExit(2) from error


def _module_of(command: str) -> str:
    """Name of the module of a command."""
    if command.startswith("-"):  # options may stand before the command: --config FILE fit
        command = "fit"
    if command not in _MODULES:
        near = difflib.get_close_matches(command, _MODULES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"no command {command!r}{hint}; expected one of {', '.join(_MODULES)}")
    return _MODULES[command]
