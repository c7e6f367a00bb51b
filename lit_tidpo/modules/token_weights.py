"""When a run computes importance weights: with each step, before it, or before all of them."""

from __future__ import annotations

from functools import cached_property

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_tidpo.errors import InputError
from lit_tidpo.importance.kept_weights import KeptWeights
from lit_tidpo.models.models import Models
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.modules.attribution import attributable, takes_gradients
from lit_tidpo.modules.rank_share import rank_share, response_batches
from lit_tidpo.modules.referenced import ReferencedModule
from lit_tidpo.modules.runtime import from_all_ranks, outside_inference
from lit_tidpo.objective import Objective
from lit_tidpo.seeding import seeded
from lit_tidpo.structures import ResponseBatch, Results

_PRECOMPUTED = "importance_every=0"


class TokenWeights:
    """Importance weights that a step finds there, so that it computes none.

    Args:
        objective: Makes and uses them.
        every: Optimizer steps for which an example's weights are kept; 1 keeps none, 0 has them
            computed before the first step and keeps them for good.

    Attributes:
        kept: Those of earlier steps, which checkpoints hold.
        apart: Weights and scores of the batch at hand, where they took a pass of their own.

    Raises:
        InputError: If weights cannot be kept for so long.
    """

    def __init__(self, objective: Objective, every: int) -> None:
        if every < 0:
            raise InputError(f"importance_every={every}: expected 0 or more")
        if objective.importance.learned and every != 1:
            raise InputError(
                f"importance_every={every} would keep weights that are trained with the policy: "
                "expected 1"
            )
        self._asked = "weights" in objective.needs
        if every != 1 and not self._asked:
            rank_zero_warn("model.importance_every has no effect: no loss asks for weights")
        self._objective = objective
        self.kept = KeptWeights(every)
        self.apart: dict[str, Tensor] | None = None

    @cached_property
    def take_gradients(self) -> bool:
        """Whether a backward pass makes those that the losses ask for."""
        return takes_gradients(self._objective.importance_needs)

    @property
    def are_precomputed(self) -> bool:
        """Whether they are computed before the first step."""
        return self._asked and self.kept.refresh_every == 0

    def of_earlier_steps(self, batch: ResponseBatch, step: int | None) -> Tensor | None:
        """Weights that were kept for a batch, if they are still fresh.

        Args:
            batch: Rows of the data.
            step: Optimizer step; None outside training, where none are kept.

        Returns:
            ``[N, T]``, or None.
        """
        if step is None or self.kept.refresh_every == 1 or not self._asked:
            return None
        return self.kept.lookup(batch, step)

    def keep(self, batch: ResponseBatch, weights: Tensor | None, step: int | None) -> None:
        """Keep what a step has computed, where later ones may use it."""
        if step is not None and self.kept.refresh_every != 1 and weights is not None:
            self.kept.store(batch, weights, step)

    def compute_apart(
        self,
        module: ReferencedModule,
        batch: ResponseBatch,
        seed: int | None,
        needs: frozenset[str],
        share: float | None = None,
    ) -> None:
        """Compute weights before a step, where its graph cannot serve attribution as well.

        Args:
            module: Whose models make them, and whose strategy says whether.
            batch: Rows of the step.
            seed: Seed of the step's dropout.
            needs: What the estimator is asked for.
            share: Share of the run that is done, which its schedules go by; None is its end.
        """
        self.apart = None
        if not (module.family.attributes_apart and takes_gradients(needs)):
            return
        with seeded(seed, batch.input_ids.device), attributable(True):
            batch = outside_inference(batch)
            results = Results(batch, module.family.run_whole(module, module.ask, batch, needs))
            self._objective.weigh(results, share)
        self.apart = {name: results[name] for name in ("weights", "scores")}

    def precompute(self, trainer: Trainer, models: Models) -> None:
        """Compute the weights of all training data, where they last, unless a checkpoint had them.

        Args:
            trainer: Knows the data, devices and precision.
            models: Make them.

        Raises:
            InputError: If the data cannot be walked before the run.
        """
        if not self.are_precomputed or self.kept.is_filled:
            return
        share = rank_share(trainer.train_dataloader, trainer, _PRECOMPUTED)
        for batch in response_batches(share, _PRECOMPUTED):
            with trainer.precision_plugin.forward_context():
                self._store_at_start(trainer.strategy.batch_to_device(batch), models)
        for state in from_all_ranks(self.kept.state_dict()):
            self.kept.update(state)

    def _store_at_start(self, batch: ResponseBatch, models: Models) -> None:
        with evaluating(models.policy):
            (results,) = self._objective.ask(models, (batch, self._objective.importance_needs))
        self._objective.weigh(results, share=0.0)
        self.kept.store(batch, results["weights"], step=0)
