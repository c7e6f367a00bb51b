"""``lit-tidpo estimate``: the memory that a run of ``fit`` would take, before it is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from lit_tidpo.commands.training import TidpoCLI
from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.devices.placement import default_device
from lit_tidpo.errors import InputError, explained
from lit_tidpo.memory.estimate import Estimator, libraries_on
from lit_tidpo.memory.rows import PairLengths, largest_batch
from lit_tidpo.memory.sharing import SHARING
from lit_tidpo.memory.step import DrySteps
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins

_GB = 10**9
_HELP = """
Every option of fit is taken, too; what memory does not hang on has no effect. Weights are not read:
the config.json of the models is enough. A step is run without numbers, by the code that fit runs,
and its tensors are counted at the moment when they are the most. Not in the table: what the process
takes before anything is loaded, and on a GPU what its driver and allocator take.
"""


def run(args: list[str]) -> None:
    """Print a table of the memory of each device.

    Args:
        args: All words of the command: its own options, and those of ``fit``.

    Raises:
        InputError: If a user can mend what is wrong.
    """
    own, rest = _parser().parse_known_args(args[1:])
    words = ["fit", *rest]
    PluginArgumentParser.problems = load_named_plugins(words)
    _EstimateCLI.own = own
    with ExitStack() as stack:
        _EstimateCLI(PreferenceModule, "lit-tidpo estimate", words, False, stack)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lit-tidpo estimate", description=__doc__, epilog=_HELP, allow_abbrev=False
    )
    parser.add_argument("--devices", type=int, help="devices; by default trainer.devices")
    parser.add_argument(
        "--strategy", choices=sorted(SHARING), help="by default trainer.strategy's name"
    )
    parser.add_argument(
        "--memory", type=float, help="GB of a device, for the largest batch that fits it"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs=3,
        metavar=("PROMPT", "CHOSEN", "REJECTED"),
        help="lengths of all pairs; by default those of the largest batch of the data",
    )
    return parser


class _Estimate:
    """What stands in the Trainer's place: its ``fit`` estimates.

    Args:
        own: Options of the command.
        trainer: Options of the Trainer.
    """

    def __init__(self, own: argparse.Namespace, trainer: Any) -> None:
        self.own = own
        self.precision = _precision(trainer.precision)
        self.accumulated = trainer.accumulate_grad_batches
        self.devices = _devices(own.devices if own.devices is not None else trainer.devices)
        self.strategy = own.strategy or _strategy(trainer.strategy)

    def fit(self, model: PreferenceModule, datamodule: PreferenceDataModule, **_: Any) -> None:
        """Print the estimate; the signature is that of the Trainer."""
        if self.own.tokens is not None:
            pairs = [PairLengths(*self.own.tokens)] * datamodule.batch_size
        else:
            with explained("the data cannot be read: give the lengths of rows as --tokens"):
                pairs = largest_batch(datamodule)
        device = default_device()
        steps = DrySteps(model, self.precision, self.accumulated, device)
        estimator = Estimator(steps, self.strategy, self.devices, libraries_on(device))
        self._print(estimator, pairs)

    def _print(self, estimator: Estimator, pairs: Sequence[PairLengths]) -> None:
        held = estimator.held(pairs)
        longest = max(pairs, key=lambda pair: pair.tokens)
        sys.stdout.write(
            f"GB (10^9 bytes) on each of {self.devices} devices, strategy {self.strategy}, "
            f"precision {self.precision}\n{len(pairs)} pairs of up to {longest.prompt} + "
            f"{longest.chosen} and {longest.rejected} tokens in a batch of a device\n"
        )
        for name, size in {**held, "together": sum(held.values())}.items():
            sys.stdout.write(f"  {name:<12}{size / _GB:12.3f}\n")
        if self.own.memory is not None:
            most = estimator.most_pairs(longest, self.own.memory * _GB)
            sys.stdout.write(
                f"{self.own.memory:g} GB hold batches of {most} pairs as long as the longest\n"
            )


class _EstimateCLI(TidpoCLI):
    """The command line of ``fit``, without its Trainer."""

    own: argparse.Namespace

    def instantiate_trainer(self, **_: Any) -> Any:
        """Take what counts of the Trainer's options."""
        return _Estimate(self.own, self._get(self.config_init, "trainer"))

    def before_fit(self) -> None:
        """Look for no checkpoint: its weights take the memory of any others."""


def _precision(given: Any) -> str:
    names = {None: "32-true", 32: "32-true", "32": "32-true", "bf16": "bf16-mixed"}
    return str(names.get(given, given))


def _devices(given: Any) -> int:
    """Number of devices that the Trainer would take."""
    if isinstance(given, (list, tuple)):
        return len(given)
    try:
        count = int(given)
    except (TypeError, ValueError):
        count = max(1, torch.cuda.device_count())  # auto
    if count < 1:
        count = max(1, torch.cuda.device_count())
    return count


def _strategy(given: Any) -> str:
    """Name of a strategy, of which an object may be given."""
    if isinstance(given, str):
        return given
    names = {"ModelParallelStrategy": "fsdp2", "FSDPStrategy": "fsdp", "DDPStrategy": "ddp"}
    name = type(given).__name__
    if name not in names:
        raise InputError(f"strategy {name} is not known: give --strategy, one of {sorted(SHARING)}")
    return names[name]
