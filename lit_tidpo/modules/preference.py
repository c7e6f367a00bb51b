"""Preference optimisation with pluggable token importance and losses."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_tidpo.errors import InputError, NonFiniteError, check_choice
from lit_tidpo.functional.importance import Scale
from lit_tidpo.importance.base import ImportanceEstimator, walk
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.metrics.example_means import ExampleMeans
from lit_tidpo.metrics.quantities import (
    by_label,
    objective_quantities,
    preference_quantities,
    quantity_names,
)
from lit_tidpo.models.layout import LayoutChoice
from lit_tidpo.models.policy import ModelOptions, PolicyConfig
from lit_tidpo.models.reference import OtherModel, check_compatible
from lit_tidpo.modules.attribution import attributable, takes_gradients
from lit_tidpo.modules.callback_checks import check_monitors
from lit_tidpo.modules.learning_rate import LRSchedule
from lit_tidpo.modules.referenced import ReferencedModule
from lit_tidpo.modules.runtime import (
    from_all_ranks,
    give_widths,
    outside_inference,
    told_by_data,
    zero_loss,
)
from lit_tidpo.modules.token_weights import TokenWeights
from lit_tidpo.objective import Objective, ObjectiveValues
from lit_tidpo.pair_cache import PairCache
from lit_tidpo.plugins.registry import IMPORTANCE, LOSSES, load
from lit_tidpo.sampling.anchor_options import AnchorOptions, window_batches
from lit_tidpo.sampling.base import Sampler
from lit_tidpo.sampling.generation import Generation
from lit_tidpo.sampling.kept_samples import KeptSamples
from lit_tidpo.schedules import Scalar, value_at
from lit_tidpo.seeding import seeded
from lit_tidpo.strategies.family import Run
from lit_tidpo.structures import Prediction, ResponseBatch

Evaluation = Literal["objective", "rewards"]
NonFinite = Literal["raise", "skip"]

_ANCHOR = AnchorOptions()
_BATCHES = ("batch_size", "eval_batch_size")


def _default_losses() -> dict[str, LossComponent]:
    """The paper's objective: weighted DPO with the KL term, and the triplet loss."""
    names = {"preference": "weighted_dpo", "triplet": "triplet"}
    return {key: load(LOSSES, name, LossComponent)() for key, name in names.items()}


class PreferenceModule(ReferencedModule):
    """TI-DPO (arXiv 2505.19653) and its relatives: any importance estimator, any sum of losses.

    Args:
        policy: The model to train.
        reference: The model of the log-ratios: a Hub name, a folder or ``builtin:NAME``. By default
            the policy as it starts, where a loss or the importance asks for a reference: a frozen
            copy, or its base with the adapters off.
        reference_cache: Folder that keeps the reference's log-probs of the data; each is computed
            once, before training, validation or test, and the reference leaves the memory where
            anchors do not need it. By default it runs at every step.
        models: Further models by name, which estimators and losses can ask for by that name.
        importance: Scores the tokens; by default ``hybrid``, gradient attribution mixed with a
            Gaussian prior (Eq. 8).
        weight_scale: What is 1 of the weights over a response that scores become: their ``mean``
            (uniform weights are then exactly plain DPO), their ``sum`` or their ``max``; ``none``
            keeps the scores as they are.
        losses: Losses by name; by default ``preference`` (weighted_dpo) and ``triplet``.
        loss_weights: Factor of each loss by name; where absent the loss's own, which is 0.1 for the
            triplet loss (Eq. 14's gamma) and 1 for the others. At 0 a loss computes nothing.
        anchor: How anchors are sampled, where a loss asks for them.
        sampler: What samples them; None takes the policy's own ``generate``.
        importance_every: Optimizer steps for which an example's weights are kept; 1 computes them
            at every step, 0 once before training.
        evaluation: What validation and test report: the whole ``objective``, or ``rewards`` alone,
            which takes neither weights nor anchors and is several times cheaper.
        layout: How rows lie in the models' batches: ``padded`` to the longest; ``packed`` side by
            side; ``shared_prompt``, where each prompt is also computed once for all its responses;
            ``auto`` takes the last where it is proven to give the same log-probs.
        logits_at_once: Tokens times vocabulary beyond which logits are computed tile by tile, in
            the backward pass again, to save memory.
        non_finite: ``raise`` when a supervised value is NaN or infinite, or ``skip`` that optimizer
            step and count it as ``train/skipped_steps``.
        optimizer: Makes the optimizer from the trainable parameters; AdamW at 1e-6 without weight
            decay by default.
        lr_schedule: Course of the learning rate after the warm-up, step by step.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        seed: Seed of sampled anchors and dropout; together with rank, epoch and batch it fixes
            them.
    """

    _in_bar = ("loss/total", "rewards/accuracies", "rewards/margins")

    def __init__(
        self,
        policy: PolicyConfig,
        reference: str | None = None,
        reference_cache: str | None = None,
        models: dict[str, ModelOptions] | None = None,
        importance: ImportanceEstimator | None = None,
        weight_scale: Scale = "mean",
        losses: dict[str, LossComponent] | None = None,
        loss_weights: dict[str, Scalar] | None = None,
        anchor: AnchorOptions = _ANCHOR,
        sampler: Sampler | None = None,
        importance_every: int = 1,
        evaluation: Evaluation = "objective",
        layout: LayoutChoice = "auto",
        logits_at_once: int = 2**24,
        non_finite: NonFinite = "raise",
        optimizer: OptimizerCallable | None = None,
        lr_schedule: LRSchedule = "constant",
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        arguments = dict(locals())
        check_choice("evaluation", evaluation, Evaluation)
        check_choice("non_finite", non_finite, NonFinite)
        estimator = importance or load(IMPORTANCE, "hybrid", ImportanceEstimator)()
        objective = Objective(
            estimator,
            weight_scale,
            _default_losses() if losses is None else losses,
            loss_weights or {},
            tuple(models or ()),
        )
        super().__init__(
            policy,
            reference,
            reference_cache,
            models or {},
            objective,
            layout,
            logits_at_once,
            optimizer,
            lr_schedule,
            warmup_steps,
            seed,
        )
        self._remember_arguments(arguments)
        self._tell_of_idle_settings(importance, weight_scale, anchor, sampler)
        parts: dict[str, object] = {**objective.losses}
        parts |= {f"importance_{place}": part for place, part in enumerate(walk(estimator))}
        # Components with parameters of their own are trained and saved with the policy.
        self.learned = nn.ModuleDict({k: v for k, v in parts.items() if isinstance(v, nn.Module)})
        self.anchor = anchor
        self.sampler = Generation(anchor) if sampler is None else sampler
        self.sampler.options = anchor
        self.kept_samples = KeptSamples(self.sampler, anchor.reuse_steps)
        self.token_weights = TokenWeights(objective, importance_every)
        self.evaluation = evaluation
        self.non_finite = non_finite
        self._left_out = False
        self.skipped_steps = 0
        self._keep_means(quantity_names(objective.losses))

    def _tell_of_idle_settings(
        self,
        importance: ImportanceEstimator | None,
        weight_scale: Scale,
        anchor: AnchorOptions,
        sampler: Sampler | None,
    ) -> None:
        needs = self.objective.needs
        for name, given in (("anchor", anchor != _ANCHOR), ("sampler", sampler is not None)):
            if given and "anchor" not in needs:
                rank_zero_warn(f"model.{name} has no effect: no loss asks for an anchor")
        if "weights" not in needs and (importance is not None or weight_scale != "mean"):
            rank_zero_warn(
                "model.importance and model.weight_scale have an effect on predict alone: no loss "
                "asks for weights"
            )

    def _take(self, policy: nn.Module, others: dict[str, OtherModel]) -> None:
        super()._take(policy, others)
        with seeded(self.seed):  # all ranks alike
            give_widths(self.learned, policy)

    def _prepare_models(self) -> None:
        super()._prepare_models()
        if "anchor" in self.objective.needs:
            self.sampler.prepare(self.built_policy)

    # One batch

    def forward(self, batch: ResponseBatch, sampling_seed: int | None = None) -> ObjectiveValues:
        """Compute losses and per-token results of a batch, for steps here or in a foreign module.

        Args:
            batch: Rows of the data.
            sampling_seed: Seed of sampled anchors and dropout, which then leave the global
                generators alone; None draws from those.

        Returns:
            What the objective makes of it; its ``loss`` is inside the graph if gradients are
            enabled, or if the estimator needs them.
        """
        with (
            seeded(sampling_seed, batch.input_ids.device),
            attributable(self.token_weights.take_gradients),
        ):
            if batch.input_ids.is_inference():
                batch = outside_inference(batch)
            anchors = self._anchors(batch) if "anchor" in self.objective.needs else None
            step = self._step_in_training
            kept = self.token_weights.of_earlier_steps(batch, step)
            known = self.token_weights.apart if kept is None else {"weights": kept}
            found = self.objective.evaluate(
                self.models, batch, anchors, known, self._step, self._share_of_run
            )
            if kept is None:
                self.token_weights.keep(batch, found.weights, step)
        return found

    @property
    def _step(self) -> int:
        return 0 if self._trainer is None else self.global_step

    @property
    def _step_in_training(self) -> int | None:
        """Optimizer step that something can be kept for; None outside training."""
        return self.global_step if self.training and self._trainer is not None else None

    @property
    def _share_of_run(self) -> float | None:
        steps = self.optimization.steps
        return min(1.0, self._step / steps) if steps else None

    @property
    def _beta(self) -> float:
        return value_at(self.objective.beta, self._share_of_run)

    def _anchors(self, batch: ResponseBatch) -> ResponseBatch:
        keep = self.anchor.reuse_steps > 1 and self._step_in_training is not None
        sampler = self.kept_samples if keep else self.sampler
        in_step = self._on_any_rank if self.family.in_step else None
        return sampler.sample(self.built_policy, batch, 1, self._step, in_step)

    def _on_any_rank(self, here: bool) -> bool:
        if self.trainer.world_size == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        return bool(self.trainer.strategy.reduce(flag, reduce_op="sum") > 0)

    def on_train_batch_start(self, batch: ResponseBatch, batch_idx: int) -> None:
        """Compute the weights of the step, where the strategy asks for a pass of their own."""
        seed = self._seed_of(0, self.current_epoch, batch_idx)
        if self.token_weights.of_earlier_steps(batch, self._step_in_training) is None:
            self._weigh_apart(batch, seed)

    def on_validation_batch_start(
        self, batch: ResponseBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As before a training step."""
        if self.evaluation == "objective":
            seed = self._seed_of(1, 0, batch_idx)
            self._weigh_apart(batch, seed)

    on_test_batch_start = on_validation_batch_start

    def _weigh_apart(self, batch: ResponseBatch, seed: int) -> None:
        needs, share = self.objective.importance_needs, self._share_of_run
        self.token_weights.compute_apart(self, batch, seed, needs, share)

    def on_predict_batch_start(
        self, batch: ResponseBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As before a training step, whether or not a loss asks for weights."""
        self.token_weights.compute_apart(self, batch, None, self.objective.importance.needs)

    # Training

    def _run(self) -> Run:
        asked = self.objective.needs | self.objective.importance_needs
        return dataclasses.replace(
            super()._run(),
            needs=asked,
            attributes=self.token_weights.take_gradients,
            trains_attribution=takes_gradients(self.objective.needs)
            or (self.token_weights.take_gradients and self.objective.importance.learned),
            precomputes=self.token_weights.are_precomputed,
            skips_steps=self.non_finite == "skip",
            learns=any(each.requires_grad for each in self.learned.parameters()),
        )

    def setup(self, stage: str) -> None:
        """Check the strategy, and forget what an earlier fit kept; a checkpoint comes after."""
        super().setup(stage)
        evaluates = stage == "fit" or self.evaluation == "objective"
        is_paired = told_by_data(self.trainer, "is_paired", True)
        if stage != "predict" and evaluates and not is_paired:
            self.objective.check_single_responses()
        if stage == "fit" and not is_paired:
            check_monitors(self.trainer)
        if "anchor" in self.objective.needs:
            turns = told_by_data(self.trainer, "trained_turns", "single")
            self.anchor.check_turns(turns == "all")
        if stage != "predict":
            self._tell_of_batches_of_one(stage)
        if stage == "fit":
            for cache in self._caches.values():
                cache.clear()

    def _tell_of_batches_of_one(self, stage: str) -> None:
        sizes = {each: told_by_data(self.trainer, each, None) for each in _BATCHES}
        if stage != "fit" and sizes["eval_batch_size"] is not None:
            del sizes["batch_size"]
        if self.evaluation == "rewards":
            del sizes["eval_batch_size"]
        ones = [f"data.{option}=1" for option, size in sizes.items() if size == 1]
        for name, loss in self.objective.losses.items():
            if ones and loss.alone:
                rank_zero_warn(
                    f"loss {name!r} gets batches of one prompt ({', '.join(ones)}): {loss.alone}; "
                    "set 2 or more (accumulated batches stay batches of their own)"
                )

    @property
    def _lookahead(self) -> int:
        return window_batches(self.anchor.reuse_steps, self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        """Compute before the first step what is kept: reference log-probs, weights."""
        super().on_train_start()
        if self.objective.is_scheduled and self._share_of_run is None:
            raise InputError(
                "schedules go by the share of the run that is done, but this run has no end: set "
                "trainer.max_steps or trainer.max_epochs"
            )
        self._left_out = False
        if "anchor" in self.objective.needs:
            taught = told_by_data(self.trainer, "response_ends", frozenset())
            self.sampler.learn_ends(self.built_policy, taught)
        self.token_weights.precompute(self.trainer, self.models)

    def training_step(self, batch: ResponseBatch, batch_idx: int) -> Tensor:
        """Loss of the batch: mean over its pairs."""
        try:
            found = self(batch, self._seed_of(0, self.current_epoch, batch_idx))
        except NonFiniteError:
            if self.non_finite == "raise":
                raise
            return self._leave_out(batch)
        quantities = objective_quantities(found, self._beta)
        self._count(self.train_means, quantities, batch)
        counted = batch.counted.to(found.loss)
        return self._window_loss(found.loss * counted, float(batch.host.counted.sum()))

    def _leave_out(self, batch: ResponseBatch) -> Tensor:
        """Loss of a batch whose step is left out; the other ranks may know nothing of it."""
        self._left_out = True
        self.train_means.update({}, batch.counted)
        nothing = zero_loss(self).expand(batch.size)
        return self._window_loss(nothing, float(batch.host.counted.sum()))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Finish the gradients, and leave a step out that was to be left out on any rank."""
        super().on_before_optimizer_step(optimizer)
        if self.non_finite == "raise":
            return
        if self._on_any_rank(self._left_out):
            # Optimizers pass over parameters without a gradient: neither they nor their state move.
            optimizer.zero_grad(set_to_none=True)
            self.skipped_steps += 1
            self.log("train/skipped_steps", float(self.skipped_steps))
        self._left_out = False

    def _count(
        self, means: ExampleMeans, quantities: dict[str, Tensor], batch: ResponseBatch
    ) -> None:
        means.update(quantities, batch.counted)
        for own, counted in by_label(quantities, batch):
            means.update(own, counted)

    # Evaluation

    def _evaluate(self, batch: ResponseBatch, batch_idx: int) -> None:
        beta = self._beta
        if self.evaluation == "rewards":
            context = self.objective.log_ratios(self.models, batch)
            quantities = preference_quantities(context, beta)
        else:
            try:
                found = self(batch, self._seed_of(1, 0, batch_idx))
            except NonFiniteError as error:
                if self.non_finite == "raise":
                    raise
                rank_zero_warn(f"a batch is left out of the evaluation: {error}")
                return
            quantities = objective_quantities(found, beta)
        self._count(self.means, quantities, batch)

    def on_predict_start(self) -> None:
        """Check that the estimator can score, whether or not a loss asks it to."""
        needs = self.objective.importance.needs
        check_compatible(self.built_policy, self.models.others, needs)

    def predict_step(self, batch: ResponseBatch, batch_idx: int) -> Prediction:
        """Per-token log-ratios and importance weights of the batch, detached."""
        with attributable(takes_gradients(self.objective.importance.needs)):
            return self.objective.explain(
                self.models, outside_inference(batch), self.token_weights.apart
            )

    # Checkpoints

    @property
    def _caches(self) -> dict[str, PairCache]:
        return {"kept_weights": self.token_weights.kept, "kept_samples": self.kept_samples}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped steps, and what later steps may still use."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped_steps"] = self.skipped_steps
        for name, cache in self._caches.items():
            if cache.refresh_every != 1:
                checkpoint[name] = from_all_ranks(cache.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what was kept; each rank its own, if there are as many as before."""
        super().on_load_checkpoint(checkpoint)
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        for name, cache in self._caches.items():
            cache.clear()
            states = checkpoint.get(name, [])
            if self._trainer is not None and len(states) == self.trainer.world_size:
                states = [states[self.global_rank]]
            for state in states:
                cache.update(state)
