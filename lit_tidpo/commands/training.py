"""``fit``, ``validate``, ``test``, ``predict`` and ``sft``: LightningCLI with our classes."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_tidpo.callbacks.save_config import SaveConfig
from lit_tidpo.callbacks.sigterm_checkpoint import SigtermCheckpoint
from lit_tidpo.callbacks.token_writer import TokenWriter
from lit_tidpo.commands.options import LINKED, LOOKAHEAD
from lit_tidpo.data.datamodule import PreferenceDataModule
from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.checkpoint_checks import check_checkpoint
from lit_tidpo.models.checkpoint_io import WholeCheckpointIO
from lit_tidpo.models.export import read_checkpoint
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.modules.sft import SFTModule
from lit_tidpo.plugins.parser import PluginArgumentParser, load_named_plugins
from lit_tidpo.sampling.generation import window_batches

_CHECKPOINT_KEYWORDS = {"best", "last", "hpc", "registry"}


def _expand(given: Any) -> None:
    """Let ``~`` be home in the folders of loggers and callbacks, before they are made."""
    for part in given if isinstance(given, list) else [given]:
        arguments = getattr(part, "init_args", None) or {}
        for name in ("save_dir", "dirpath"):
            folder = arguments.get(name)
            if isinstance(folder, str):
                arguments[name] = os.path.expanduser(folder)


def _reserve_folders(trainer: Trainer) -> None:
    """Make the loggers' folders now, so that two runs that start together do not share one."""
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if not isinstance(logger, (CSVLogger, TensorBoardLogger)) or logger._version is not None:
            continue
        with explained(f"the log folder {logger.root_dir!r} cannot be made"):
            for version in itertools.count(logger._get_next_version()):
                logger._version = version
                with suppress(FileExistsError):
                    os.makedirs(logger.log_dir)
                    break


class TidpoCLI(LightningCLI):
    """LightningCLI whose model and data share a tokenizer, and that keeps what the user typed.

    Args:
        module: Class of the module to run.
        prog: What the command is called.
        words: The words behind that.
    """

    def __init__(self, module: type[LightningModule], prog: str, words: list[str]) -> None:
        self.words = words
        super().__init__(
            module,
            PreferenceDataModule,
            parser_class=PluginArgumentParser,
            parser_kwargs={"prog": prog, "allow_abbrev": False},
            trainer_defaults={"callbacks": SigtermCheckpoint()},
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
        _expand(self._get(self.config, "trainer.logger"))
        _expand(self._get(self.config, "trainer.callbacks"))
        path = self._get(self.config, "ckpt_path")
        if path == "best":
            raise InputError(
                "ckpt_path='best' is known to the process that trained alone: give the file"
            )
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

    def instantiate_classes(self) -> None:
        """Make Trainer, model and data; what they or a plugin raise becomes one line."""
        with explained("the run cannot be set up"):
            super().instantiate_classes()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Make the Trainer, which writes whole checkpoints."""
        trainer = super().instantiate_trainer(**options)
        _reserve_folders(trainer)
        strategy: Any = trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            sizes = (strategy._data_parallel_size, strategy._tensor_parallel_size)
            if sizes == ("auto", 1):  # which Lightning takes for one a node
                strategy._data_parallel_size = trainer.num_devices * trainer.num_nodes
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user's own stays
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Find the last checkpoint, if that is asked for and there is one."""
        self._find_last(required=False)
        path = self.config_init[self.subcommand].get("ckpt_path")
        sharded = path is not None and Path(path).is_dir()
        if sharded and not isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise InputError(
                f"ckpt_path={str(path)!r} is a folder, whose optimizer strategy model_parallel "
                "alone can go on with, on any number of processes: set that strategy, or export "
                "the checkpoint and start from it as model.policy.path"
            )

    def before_validate(self) -> None:
        """Find the last checkpoint, if that is asked for."""
        self._find_last(required=True)

    before_test = before_predict = before_validate

    def _find_last(self, required: bool) -> None:
        """Put the newest ``last*.ckpt`` of all runs in this place in the place of ``last``.

        Lightning would look into the folder of this run, which is new.
        """
        options = self.config_init[self.subcommand]
        if options.get("ckpt_path") != "last":
            return
        folders = {self.trainer.default_root_dir}
        folders |= {
            str(Path(logger.save_dir) / str(logger.name or ""))
            for logger in self.trainer.loggers
            if logger.save_dir is not None
        }
        folders |= {
            str(callback.dirpath)
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.dirpath
        }
        files = {file for folder in folders for file in Path(folder).rglob("last*.ckpt")}
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        newest = self.trainer.strategy.broadcast(newest)
        if newest is not None:
            rank_zero_info(f"ckpt_path=last: {newest}")
            options["ckpt_path"] = str(newest)
        elif required:
            raise InputError(
                f"ckpt_path='last': there is no last*.ckpt in {sorted(folders)}: give the file, "
                "or train with ModelCheckpoint's save_last=true"
            )


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
        TidpoCLI(module, prog, args)
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    except MisconfigurationException as error:
        raise InputError(str(error) or type(error).__name__) from error
