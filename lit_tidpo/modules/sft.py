"""Supervised fine-tuning on the chosen responses."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_tidpo.errors import InputError, NonFiniteError
from lit_tidpo.functional.losses import sequence_sum
from lit_tidpo.models.models import Models
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.modules.base import PolicyModule
from lit_tidpo.modules.learning_rate import LRSchedule
from lit_tidpo.modules.runtime import told_by_data
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch


class SFTModule(PolicyModule):
    """Cross-entropy of the chosen responses' tokens, prompt masked, on the preference data path.

    Args:
        policy: The model to train.
        optimizer: Makes the optimizer from the trainable parameters; AdamW at 1e-6 without weight
            decay by default.
        lr_schedule: Course of the learning rate after the warm-up, step by step.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        seed: Seed of dropout; together with rank, epoch and batch it fixes it.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: LRSchedule = "constant",
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, warmup_steps, seed)
        self._remember_arguments(locals())
        self._keep_means(["nats", "tokens"])

    def setup(self, stage: str) -> None:
        """Refuse data without chosen responses."""
        super().setup(stage)
        if not told_by_data(self.trainer, "is_paired", True):
            raise InputError(
                "sft trains on the chosen responses of pairs, but the data hold single responses "
                "with a label: put a good and a bad one to the same prompt into one row"
            )

    def training_step(self, batch: ResponseBatch, batch_idx: int) -> Tensor:
        """Mean negative log-prob of the batch's chosen tokens, in nats."""
        seed = self._seed_of(0, self.current_epoch, batch_idx)
        with seeded(seed, batch.input_ids.device):
            nats, tokens = self._nats(batch)
        self.train_means.update({"nats": nats, "tokens": tokens}, batch.counted)
        rows = batch.role("chosen").host
        amount = float((rows.response_mask.sum(-1) * rows.counted).sum())
        return self._window_loss(nats, amount)

    def _evaluate(self, batch: ResponseBatch, batch_idx: int) -> None:
        nats, tokens = self._nats(batch)
        self.means.update({"nats": nats, "tokens": tokens}, batch.counted)

    def _reported(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss per token, whatever the length of the responses."""
        return {"loss": means["nats"] / means["tokens"]}

    def _nats(self, batch: ResponseBatch) -> tuple[Tensor, Tensor]:
        """Negative log-prob and number of tokens of each chosen response, ``[B]`` each."""
        rows = batch.role("chosen")
        (results,) = Models(self.built_policy).run([(rows, frozenset())])
        counted = rows.counted.to(results["policy.logps"])
        nats = -sequence_sum(results["policy.logps"], results.mask) * counted
        if not bool(nats.isfinite().all()):
            pairs = rows.index[~nats.isfinite()].tolist()
            raise NonFiniteError(
                f"the loss is NaN or infinite for the pairs {pairs} of the data set: lower the "
                "learning rate"
            )
        return nats, results.mask.sum(-1) * counted
