"""A policy beside the reference that it is compared with: how both are built, and how they run."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lit_tidpo.models.kept_logps import ReleasableReference
from lit_tidpo.models.layout import LayoutChoice, choose_layout, head_agrees
from lit_tidpo.models.packing import use_packed_attention
from lit_tidpo.models.policy import PolicyConfig, build_policy
from lit_tidpo.models.reference import Reference, check_compatible
from lit_tidpo.modules.base import LRSchedule, PolicyModule
from lit_tidpo.modules.cached_reference import CachedReference
from lit_tidpo.objective import Objective


class ReferencedModule(PolicyModule):
    """A module that trains a policy against a frozen reference.

    Args:
        policy: The model to train.
        reference: The model of the log-ratios: a Hub name, a folder or ``builtin:NAME``. By default
            the policy as it starts: a frozen copy, or its base with the adapters off.
        reference_cache: Folder that keeps the reference's log-probs; None runs it at every step.
        objective: What both models are run for.
        layout: How rows lie in the models' batches.
        optimizer: See :class:`lit_tidpo.modules.base.PolicyModule`, as for the rest.
        lr_schedule: Course of the learning rate.
        warmup_steps: Steps of its rise.
        seed: Seed of whatever a step draws.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        reference: str | None,
        reference_cache: str | None,
        objective: Objective,
        layout: LayoutChoice,
        optimizer: OptimizerCallable | None,
        lr_schedule: LRSchedule,
        warmup_steps: int,
        seed: int,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, warmup_steps, seed)
        self.objective = objective
        self.reference: Reference | None = None
        self.reference_path = reference
        self.cached_reference = CachedReference(reference_cache, objective)
        self.layout = layout

    def attach(self, policy: nn.Module, reference: nn.Module | None = None) -> None:
        """Use models that were built elsewhere instead of ``policy.path``.

        Unless ``layout`` is ``padded``, their SDPA is exchanged for one that takes packed rows,
        too; in all other calls it computes what it did.

        Args:
            policy: A causal language model of transformers, in its starting state.
            reference: Model of the log-ratios; None freezes a copy of ``policy``.
        """
        self.policy = policy.train()
        self.reference = Reference(reference) if reference is not None else Reference.of(policy)
        self.cached_reference.describe(policy, self.reference)
        self._check_models()

    def configure_model(self) -> None:
        """Build policy and reference, once; the reference stays out of the module tree."""
        if self.policy is not None:
            return
        policy = build_policy(self.policy_config)
        if self.reference_path is None:
            self.reference = Reference.of(policy, self.policy_config.lora is not None)
        else:
            self.reference = Reference(build_policy(self._reference_config()))
        self.policy = policy
        # Now, because a checkpoint may be loaded into the policy next.
        self.cached_reference.describe(policy, self.reference)
        self._check_models()
        self._shard(policy, self.reference.model)
        if self.cached_reference.replaces_runs and self.reference.model is not None:
            self.reference = ReleasableReference(self.reference.model, self._rebuild_reference)

    def _reference_config(self) -> PolicyConfig:
        if self.reference_path is None:
            return self.policy_config
        config = dataclasses.replace(
            self.policy_config,
            path=self.reference_path,
            revision=None,
            init="pretrained",
            init_seed=0,
        )
        return dataclasses.replace(config, lora=None, adapter=None, activation_checkpointing=False)

    def _rebuild_reference(self) -> nn.Module:
        model = build_policy(self._reference_config())
        if self.objective.computation.layout != "padded":
            use_packed_attention(model)
        self._shard(model)
        return model

    def _check_models(self) -> None:
        needs = self.objective.needs | self.objective.importance_needs()
        check_compatible(self.built_policy, self.built_reference.model, needs)
        models = [model for model in (self.policy, self.built_reference.model) if model is not None]
        unshared = None
        if self.objective.weighting.positions == "all":
            unshared = "weighting.positions=all asks for the gradients of each row's own prompt"
        elif self.device_mesh is not None:
            unshared = "a sharded layer is gathered for its output, not for what prompts leave"
        layout = choose_layout(self.layout, models, needs, unshared)
        own_logits = not all(head_agrees(model) for model in models)
        if own_logits:
            rank_zero_info("All logits are held at once: the model changes them after its head")
        self.objective.computation = dataclasses.replace(
            self.objective.computation, layout=layout, own_logits=own_logits
        )

    @property
    def built_reference(self) -> Reference:
        """The reference; there is one as soon as there is a policy."""
        assert self.reference is not None
        return self.reference

    def _prepare_reference(self, *loaders: Any) -> None:
        """Compute the reference's log-probs of all pairs of the loaders, where they are kept."""
        self.cached_reference.prepare(
            self.trainer, self.built_policy, self.built_reference, *loaders
        )

    def on_train_start(self) -> None:
        """Compute what is kept before the first step."""
        super().on_train_start()
        self._prepare_reference(self.trainer.train_dataloader, self.trainer.val_dataloaders)

    def on_validation_start(self) -> None:
        """Compute the reference's log-probs of validation data that were not there before."""
        self._prepare_reference(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Compute the reference's log-probs of the test data."""
        self._prepare_reference(self.trainer.test_dataloaders)
