"""``fit``, ``validate``, ``test``, ``predict`` and ``sft``: LightningCLI with our classes."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_tidpo.callbacks.progress import steps_bar
from lit_tidpo.callbacks.run_summary import RunSummary
from lit_tidpo.callbacks.save_config import SaveConfig
from lit_tidpo.callbacks.sigterm_checkpoint import SigtermCheckpoint
from lit_tidpo.callbacks.slurm_requeue import SlurmRequeue
from lit_tidpo.callbacks.starting_values import StartingValues
from lit_tidpo.callbacks.token_writer import TokenWriter
from lit_tidpo.commands.checkpoints import best, folders_of, newest, steps_of
from lit_tidpo.commands.options import LINKED, LOOKAHEAD, RUN
from lit_tidpo.commands.run_folders import enter, named_folder, reserve, settle
from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.checkpoint_checks import check_checkpoint
from lit_tidpo.models.checkpoint_io import WholeCheckpointIO
from lit_tidpo.models.export import read_checkpoint
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins
from lit_tidpo.sampling.anchor_options import window_batches
from lit_tidpo.strategies.families import family_of
from lit_tidpo.strategies.family import check_precision

_SOUGHT = ("last", "best")
_CHECKPOINT_KEYWORDS = {*_SOUGHT, "hpc", "registry"}


def _expand(given: Any) -> None:
    """Let ``~`` be home in the folders of loggers and callbacks, before they are made."""
    for part in given if isinstance(given, list) else [given]:
        arguments = getattr(part, "init_args", None) or {}
        for name in ("save_dir", "dirpath"):
            folder = arguments.get(name)
            if isinstance(folder, str):
                arguments[name] = os.path.expanduser(folder)


class TidpoCLI(LightningCLI):
    """LightningCLI whose model and data share a tokenizer, and that keeps what the user typed.

    Args:
        module: Class of the module to run.
        prog: What the command is called.
        words: The words behind that.
        resume: Whether the run goes on from its newest checkpoint.
        stack: What is closed when the command ends.
    """

    def __init__(
        self,
        module: type[LightningModule],
        prog: str,
        words: list[str],
        resume: bool,
        stack: ExitStack,
    ) -> None:
        self.words = words
        self.resume = resume
        self.stack = stack
        self.folder: Path | None = None
        self.steps = 0  # that the checkpoint to go on from has seen
        super().__init__(
            module,
            PreferenceDataModule,
            parser_class=PluginArgumentParser,
            parser_kwargs={"prog": prog, "allow_abbrev": False},
            trainer_defaults={
                "callbacks": [SigtermCheckpoint(), SlurmRequeue(), StartingValues(), RunSummary()]
            },
            save_config_callback=SaveConfig,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=words,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of the class there
        """The one that was typed first, as each takes long to make; all where options were."""
        every = super().subcommands()
        return {name: every[name] for name in every if name in self.words[:1]} or every

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Link the data to the model; add the writer of predictions."""
        parser.add_argument(f"--{RUN.name}", type=str | None, default=None, help=RUN.text)
        for target, source in LINKED.items():
            parser.link_arguments(source, target)
        if self.model_class is PreferenceModule:
            steps = ("model.anchor.reuse_steps", "trainer.accumulate_grad_batches")
            parser.link_arguments(steps, LOOKAHEAD, compute_fn=window_batches)
            parser.add_lightning_class_args(TokenWriter, "tokens")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and warn of plugins that were named but are neither usable nor used."""
        # Lightning's own would warn on every run that arguments came from within Python.
        self.config = parser.parse_args(args)
        for problem in parser.problems.values():
            rank_zero_warn(f"{problem}; this run does not use it")

    def _parse_ckpt_path(self) -> None:
        """Keep what the user typed.

        Lightning would let the hyperparameters in a checkpoint override options and configuration.
        """

    def before_instantiate_classes(self) -> None:
        """Check what can be checked before models are loaded."""
        given, own = (
            [self._get(self.config, name, default=0) for name in names]
            for names in (["seed_everything"], ["data.seed", "model.seed"])
        )
        if any(given) and not any(own):
            rank_zero_warn(
                f"seed_everything={given[0]} moves only what components of your own draw: the "
                "order of the data, anchors, dropout and new weights go by data.seed, model.seed "
                "and model.policy.init_seed"
            )
        if not self._get(self.config, "model.policy.path", default=""):
            raise InputError(
                "model.policy.path is not set: name a model on the Hub, a folder, or builtin:policy"
            )
        window = self._get(self.config, "trainer.accumulate_grad_batches", default=1)
        if window < 1:
            raise InputError(f"trainer.accumulate_grad_batches={window}: expected 1 or more")
        check_precision(self._get(self.config, "trainer.precision") or "32-true")
        _expand(self._get(self.config, "trainer.logger"))
        _expand(self._get(self.config, "trainer.callbacks"))
        self._enter_run()
        path = self._get(self.config, "ckpt_path")
        if path is None or path in _CHECKPOINT_KEYWORDS:
            return
        path = self.config[self.subcommand]["ckpt_path"] = os.path.expanduser(path)
        if not Path(path).is_dir():
            check_checkpoint(
                path,
                read_checkpoint(Path(path)),
                lambda name: self._get(self.config, f"model.{name}"),
                self.model_class is SFTModule,
                self.subcommand == "fit",
            )

    def _enter_run(self) -> None:
        """Find the folder of a named run, and the checkpoint in it to go on from."""
        options = self.config[self.subcommand]
        root = self._get(self.config, "trainer.default_root_dir")
        self.folder = named_folder(options.get("run"), self.resume, root)
        fits, asked = self.subcommand == "fit", options.get("ckpt_path")
        if self.folder is None or (not self.resume if fits else asked not in (None, *_SOUGHT)):
            return
        found = newest([*self.folder.glob("checkpoints*"), self.folder])
        if found is None and not fits:
            raise InputError(f"run={options.run!r}: there is no checkpoint in {str(self.folder)!r}")
        if found is not None:
            found = best(found) if asked == "best" and not fits else found
            self.steps = steps_of(found)
            rank_zero_info(f"{'Goes on from' if fits else 'Takes'} {found} (step {self.steps})")
        elif asked not in _SOUGHT:
            return
        options["ckpt_path"] = None if found is None else str(found)

    def instantiate_classes(self) -> None:
        """Make Trainer, model and data; what they or a plugin raise becomes one line."""
        with explained("the run cannot be set up"):
            super().instantiate_classes()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Make the Trainer, which writes whole checkpoints."""
        if self.folder is not None:
            options["default_root_dir"] = str(self.folder)
        options["callbacks"] = self._callbacks()
        trainer = super().instantiate_trainer(**options)
        fits = self.subcommand == "fit"
        if self.folder is not None:
            if fits and trainer.is_global_zero:
                enter(self.folder, self.resume, self.stack)
            settle(trainer, self.folder, str(self.subcommand), self.steps)
        reserve(trainer, fits)
        family_of(trainer.strategy).settle(trainer.num_devices * trainer.num_nodes)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user's own stays
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer

    def _callbacks(self) -> list[Callback]:
        """What was configured, and a progress bar if that has none and wants one."""
        given = self._get(self.config_init, "trainer.callbacks") or []
        callbacks = [*given] if isinstance(given, list) else [given]
        wants = self._get(self.config_init, "trainer.enable_progress_bar") is not False
        barebones = self._get(self.config_init, "trainer.barebones")
        if wants and not barebones and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(steps_bar())
        return callbacks

    def before_fit(self) -> None:
        """Find the checkpoint, if one is asked for by a word and there is one."""
        self._find_checkpoint()
        path = self.config_init[self.subcommand].get("ckpt_path")
        if path is not None and path not in _CHECKPOINT_KEYWORDS:
            processes = self.trainer.num_devices * self.trainer.num_nodes
            family_of(self.trainer.strategy).check_resumed(Path(path), processes)

    def before_validate(self) -> None:
        """Find the checkpoint, if one is asked for by a word."""
        self._find_checkpoint()

    before_test = before_predict = before_validate

    def _find_checkpoint(self) -> None:
        """Put the file in the place of ``last`` and ``best``.

        Lightning would look into the folder of this run, which is new, and knows no best one.
        """
        options = self.config_init[self.subcommand]
        asked = options.get("ckpt_path")
        if asked not in _SOUGHT:
            return
        folders = folders_of(self.trainer)
        found = newest(folders, "last*.ckpt" if asked == "last" else "*.ckpt")
        if found is None and (asked, self.subcommand) != ("last", "fit"):
            names = "last*.ckpt" if asked == "last" else "checkpoint"
            raise InputError(
                f"ckpt_path={asked!r}: there is no {names} in {list(map(str, folders))}: give the "
                "file or the --run, or train with ModelCheckpoint's save_last=true"
            )
        if found is not None:
            found = best(found) if asked == "best" else found
            rank_zero_info(f"ckpt_path={asked}: {found}")
            options["ckpt_path"] = str(found)


def run(args: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, or, behind ``sft``, the first three.

    Args:
        args: All words of the command.

    Raises:
        InputError: If a user can mend what is wrong.
        SystemExit: After a signal to end.
    """
    module: type[LightningModule] = PreferenceModule
    prog = "lit-tidpo"
    if args[:1] == ["sft"]:
        module, prog, args = SFTModule, "lit-tidpo sft", args[1:]
        if args[:1] == ["predict"]:
            raise InputError(
                "sft predict does not exist: per-token results are of lit-tidpo predict"
            )
    PluginArgumentParser.problems = load_named_plugins(args)
    try:
        with ExitStack() as stack:
            resume = "--resume" in args
            TidpoCLI(module, prog, [w for w in args if w != "--resume"], resume, stack)
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    except MisconfigurationException as error:
        raise InputError(str(error) or type(error).__name__) from error
