"""What the modules share: a policy, its optimizer and the strategies they run under."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_tidpo.errors import InputError, check_finite, explained
from lit_tidpo.metrics import ExampleMeans
from lit_tidpo.models.adapters import frozen_names
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.callback_checks import check_callbacks, check_finders
from lit_tidpo.modules.learning_rate import LRSchedule
from lit_tidpo.modules.optimization import Optimization
from lit_tidpo.modules.optimizer_settings import apply_settings, kept_settings, tell_of_lost_steps
from lit_tidpo.modules.rounding import round_stochastically
from lit_tidpo.modules.runtime import check_weights, data_share
from lit_tidpo.modules.window import AccumulationWindow
from lit_tidpo.plugins.configurations import without_secrets
from lit_tidpo.plugins.hparams import as_plain_data
from lit_tidpo.strategies.families import family_of
from lit_tidpo.strategies.family import OneDevice, Run, StrategyFamily
from lit_tidpo.structures import ResponseBatch

# Lightning 2.6 calls what newer jsonargparse deprecates: nothing that a user of ours could mend.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


class PolicyModule(LightningModule):
    """A LightningModule around one language model.

    Args:
        policy: The model to train.
        optimizer: Makes the optimizer from the trainable parameters; AdamW at 1e-6 without weight
            decay by default.
        lr_schedule: Course of the learning rate after the warm-up, step by step.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        seed: Seed of whatever a step draws; together with rank, epoch and batch it fixes it.
    """

    policy: nn.Module | None
    _in_bar: tuple[str, ...] = ("loss",)
    """What the progress bar shows of what is logged."""

    def __init__(
        self,
        policy: PolicyConfig,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: LRSchedule = "constant",
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy = None
        self.policy_config = policy
        self.optimization = Optimization(optimizer, lr_schedule, warmup_steps)
        self.seed = seed
        self._window = AccumulationWindow()

    def _remember_arguments(self, arguments: dict[str, Any]) -> None:
        """Save the constructor's arguments as the command line would.

        Args:
            arguments: ``locals()`` of the constructor, before it has any others.
        """
        implied = ("self", "__class__")
        values = {
            name: as_plain_data(value) for name, value in arguments.items() if name not in implied
        }
        check_finite("model", values)
        values["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        self.save_hyperparameters(values)

    @property
    def hparams_initial(self) -> AttributeDict:
        """What loggers get of the constructor's arguments: secrets stand as ``***``."""
        return AttributeDict(without_secrets(super().hparams_initial))

    def configure_callbacks(self) -> list[Callback]:
        """Add none, and refuse those that cannot work; later, some would fail without a reason."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_callbacks(self.trainer, self.policy is not None)
        return []

    def setup(self, stage: str) -> None:
        """Refuse what would make gradients or attributions wrong, or is not proven to be right."""
        self.family.check(dataclasses.replace(self._run(), fits=stage == "fit"))

    @property
    def family(self) -> StrategyFamily:
        """What the Trainer's strategy does to a run; without a Trainer, that of one device."""
        return OneDevice(None) if self._trainer is None else family_of(self.trainer.strategy)

    def _run(self) -> Run:
        """What the strategy has to serve."""
        return Run(
            self.policy_config,
            self.trainer.precision_plugin,
            self.policy,
            accumulates=self.trainer.accumulate_grad_batches > 1,
        )

    def configure_model(self) -> None:
        """Build the policy, once."""
        if self.policy is None:
            with self.family.building():
                self.policy = build_policy(self.policy_config)
            self.family.shard_policy(self.policy)

    @property
    def built_policy(self) -> nn.Module:
        """The policy.

        Raises:
            InputError: If it has not been built yet.
        """
        if self.policy is None:
            raise InputError(
                "the policy is not built yet: a Trainer builds it, or call configure_model()"
            )
        return self.policy

    def configure_optimizers(self) -> Any:
        """Make the optimizer over the trainable parameters and the schedule of its rate."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.optimization.optimizer(parameters)
        if self.policy_config.stochastic_rounding:
            if self.device_mesh is not None:
                raise InputError(
                    "policy.stochastic_rounding does not go with strategy model_parallel, whose "
                    "weights are parts: set policy.dtype=float32 with trainer.precision=bf16-mixed"
                )
            round_stochastically(optimizer, self._rounding_seed)
        else:
            tell_of_lost_steps(parameters, optimizer.defaults.get("lr"))
        return self.optimization.scheduled(optimizer)

    def _rounding_seed(self) -> int:
        step = 0 if self._trainer is None else self.global_step
        return hash((self.seed, step)) % 2**63

    @property
    def lr(self) -> float:
        """Learning rate of the optimizer, which Lightning's search for one reads and sets."""
        return float(self.optimization.specimen().defaults["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        self.optimization.take_rate(rate, self._trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which optimizer it is, and its settings; let go of frozen weights if asked to."""
        for optimizer in self.trainer.optimizers[:1]:
            checkpoint["optimizer"] = kept_settings(self.family.inner_optimizer(optimizer))
        if not self.policy_config.save_frozen:
            state = checkpoint["state_dict"]
            for frozen in frozen_names(self):
                # with the scales that bitsandbytes puts below a weight's name
                for name in [n for n in state if n == frozen or n.startswith(f"{frozen}.")]:
                    del state[name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the checkpoint's optimizer the settings of this run, where they are others.

        Raises:
            InputError: If it is another optimizer, or its settings cannot be reached.
        """
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting:
            if not self.trainer.optimizers:  # otherwise a search takes back what it did
                check_finders(self.trainer)
            apply_settings(checkpoint, self.optimization.specimen)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; see :meth:`torch.nn.Module.load_state_dict`.

        Raises:
            InputError: If they are of another model or other adapters.
        """
        with explained(
            "the checkpoint does not fit the model; give model.policy the path and adapters of its "
            "training"
        ):
            if not self.policy_config.save_frozen:
                own = self.state_dict()
                state_dict = {**{name: own[name] for name in frozen_names(self)}, **state_dict}
            return super().load_state_dict(state_dict, strict, assign)

    @property
    def _lookahead(self) -> int:
        """Batches that our loader has to read at a time, the current one included."""
        return 1

    def on_train_start(self) -> None:
        """Check the loader, and find out when training ends.

        Not earlier: asking the Trainer makes it start on the data, which has to wait until a
        checkpoint is restored.
        """
        if self.device_mesh is None:
            check_weights(self)
        self._window.drop()
        self.train_means.reset()
        # Other loaders have no such setting.
        given = getattr(self.trainer.train_dataloader, "lookahead", self._lookahead)
        if given != self._lookahead:
            raise InputError(
                f"data.lookahead={given}: expected {self._lookahead}, that is, "
                "model.anchor.reuse_steps times trainer.accumulate_grad_batches, or 1 where no "
                "anchors are kept"
            )
        self.optimization.begin(self.trainer)

    def _seed_of(self, stage: int, epoch: int, batch_idx: int) -> int:
        """Seed of a batch, the same after a restart."""
        rank = data_share(self._trainer)["rank"]  # ranks that share a row draw alike
        return hash((self.seed, rank, stage, epoch, batch_idx)) % 2**63

    # Means over windows of accumulated batches, and over epochs

    def _keep_means(self, names: list[str]) -> None:
        """Keep means of these quantities, for training and for evaluation."""
        self.train_means, self.means = ExampleMeans(names), ExampleMeans(names)

    def _window_loss(self, values: Tensor, amount: float) -> Tensor:
        """Scalar to backpropagate; see :meth:`AccumulationWindow.loss`."""
        loss = self._window.loss(values, amount, self.trainer)
        # Lightning divides by this, and a strategy that accumulates by itself does so once more.
        return loss * self.trainer.accumulate_grad_batches if self.family.accumulates else loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as the strategy has to."""
        if gradient_clip_val:
            kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            self.family.clip(self.parameters(), optimizer, gradient_clip_val, kind.value)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step as Lightning does; see :meth:`StrategyFamily.after_step`."""
        super().optimizer_step(*arguments, **options)
        self.family.after_step(self.trainer.optimizers[0])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradients into those of the mean over the window, and log its means."""
        finished = () if self.family.accumulates else self.parameters()
        self._window.close(finished, self.trainer.accumulate_grad_batches)
        self._log_means("train", self.train_means)

    def _evaluate(self, batch: ResponseBatch, batch_idx: int) -> None:
        """Add the batch to ``means``."""
        raise NotImplementedError

    def _reported(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged of the means over examples."""
        return means

    def _log_means(self, stage: str, means: ExampleMeans) -> None:
        """Log the means over all examples of all ranks, and start over."""
        values = self._reported(means.compute())
        means.reset()
        for name, value in values.items():
            self.log(
                f"{stage}/{name}",
                value,
                prog_bar=name in self._in_bar,
                sync_dist=stage != "train",  # the same everywhere; this says so to Lightning
            )

    def validation_step(self, batch: ResponseBatch, batch_idx: int) -> None:
        """Add the batch to the means."""
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: ResponseBatch, batch_idx: int) -> None:
        """Add the batch to the means."""
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all examples of all ranks."""
        self._log_means("val", self.means)

    def on_test_epoch_end(self) -> None:
        """Log the means over all examples of all ranks."""
        self._log_means("test", self.means)
