"""A policy beside the models that it is compared with: how all are built, and how they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_tidpo.errors import InputError, check_choice
from lit_tidpo.models.layout import LayoutChoice, choose_layout, head_agrees
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.models import Models
from lit_tidpo.models.packed_attention import use_packed_attention
from lit_tidpo.models.policy import ModelOptions, PolicyConfig
from lit_tidpo.models.reference import (
    BaseOfAdapters,
    FrozenModel,
    InstructedModel,
    OtherModel,
    check_compatible,
)
from lit_tidpo.models.tokenizer import policy_tokenizer
from lit_tidpo.modules.base import PolicyModule
from lit_tidpo.modules.cached_reference import CachedReference
from lit_tidpo.modules.learning_rate import LRSchedule
from lit_tidpo.objective import Objective
from lit_tidpo.structures import ResponseBatch


class ReferencedModule(PolicyModule):
    """A module that trains a policy against frozen models.

    Args:
        policy: The model to train.
        reference: The model of the log-ratios: a Hub name, a folder or ``builtin:NAME``. By default
            the policy as it starts, where a component asks for a reference: a frozen copy, or its
            base with the adapters off.
        reference_cache: Folder that keeps the reference's log-probs; None runs it at every step.
        models: Further models by name.
        objective: What the models are run for.
        layout: How rows lie in the models' batches.
        logits_at_once: Tokens times vocabulary beyond which logits are computed tile by tile.
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
        models: Mapping[str, ModelOptions],
        objective: Objective,
        layout: LayoutChoice,
        logits_at_once: int,
        optimizer: OptimizerCallable | None,
        lr_schedule: LRSchedule,
        warmup_steps: int,
        seed: int,
    ) -> None:
        check_choice("layout", layout, LayoutChoice)
        if logits_at_once < 1:
            raise InputError(f"logits_at_once={logits_at_once}: expected 1 or more")
        super().__init__(policy, optimizer, lr_schedule, warmup_steps, seed)
        self.objective = objective
        self.reference_path = reference
        self.cached_reference = CachedReference(reference_cache, objective)
        self.model_options = models
        self.layout = layout
        self.logits_at_once = logits_at_once
        self._models: Models | None = None
        if reference_cache is not None and not self._has_reference:
            raise InputError(
                f"model.reference_cache={reference_cache!r} keeps log-probs of a reference, which "
                "no loss and no importance asks for: leave it out"
            )
        if not self._has_reference:
            rank_zero_info("No loss asks for a reference: there is none, and no rewards are logged")
        unasked = sorted(models.keys() - objective.models)
        if unasked:
            rank_zero_warn(f"model.models has no effect for {unasked}: no component asks for them")

    @property
    def models(self) -> Models:
        """The policy and what it is compared with.

        Raises:
            InputError: If they have not been built yet.
        """
        policy = self.built_policy
        assert self._models is not None
        self._models.policy = policy
        return self._models

    @property
    def _has_reference(self) -> bool:
        return self.reference_path is not None or "reference" in self.objective.models

    def attach(
        self,
        policy: nn.Module,
        reference: nn.Module | None = None,
        models: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Use models that were built elsewhere instead of ``policy.path``.

        Unless ``layout`` is ``padded``, their SDPA is exchanged for one that takes packed rows,
        too; in all other calls it computes what it did.

        Args:
            policy: A causal language model of transformers, in its starting state.
            reference: Model of the log-ratios; None freezes a copy of ``policy``, where a component
                asks for one.
            models: Further models by name.
        """
        others: dict[str, OtherModel] = {
            name: FrozenModel(model) for name, model in (models or {}).items()
        }
        if reference is not None:
            others["reference"] = FrozenModel(reference)
        elif self._has_reference:
            others["reference"] = FrozenModel.copy_of(policy)
        self._take(policy.train(), others)

    def configure_model(self) -> None:
        """Build the models, once; all but the policy stay out of the module tree."""
        if self.policy is not None:
            return
        with self.family.building():
            policy = build_policy(self.policy_config)
            others = {name: self._further(options) for name, options in self.model_options.items()}
            if self._has_reference:
                others["reference"] = self._reference(policy)
            self._take(policy, others)
        self.family.shard_policy(policy)
        for other in others.values():
            other.exchange(self.family.shard_frozen)

    def _take(self, policy: nn.Module, others: dict[str, OtherModel]) -> None:
        self.policy = policy
        self._models = Models(policy, others, logits_at_once=self.logits_at_once)
        # Now, because a checkpoint may be loaded into the policy next.
        self.cached_reference.describe(self._models)
        self._prepare_models()

    def _reference(self, policy: nn.Module) -> OtherModel:
        if self.reference_path is None and self.policy_config.lora is not None:
            return BaseOfAdapters()
        rebuild = self._rebuild_reference if self.cached_reference.replaces_runs else None
        if self.reference_path is not None:
            return FrozenModel(build_policy(self._frozen(self.reference_path)), rebuild)
        return FrozenModel.copy_of(policy, rebuild)

    def _rebuild_reference(self) -> nn.Module:
        path = self.reference_path
        with self.family.building():
            model = build_policy(self.policy_config if path is None else self._frozen(path))
        if self.models.layout != "padded":
            use_packed_attention(model)
        return self.family.shard_frozen(model.requires_grad_(False))

    def _further(self, options: ModelOptions) -> OtherModel:
        model: OtherModel | None = None
        if options.path is not None or options.adapter is not None:
            config = self._frozen(options.path, options.revision, options.adapter)
            model = FrozenModel(build_policy(config))
        if options.prompt is None:
            assert model is not None
            return model
        tokenizer = policy_tokenizer(self.policy_config)
        instruction = tokenizer(options.prompt, add_special_tokens=False)["input_ids"]
        return InstructedModel(instruction, tokenizer.bos_token_id, model)

    def _frozen(
        self, path: str | None, revision: str | None = None, adapter: str | None = None
    ) -> PolicyConfig:
        """How a model that is not trained is loaded: as the policy, from elsewhere."""
        config = dataclasses.replace(
            self.policy_config,
            lora=None,
            adapter=adapter,
            quantization=None,
            activation_checkpointing=False,
            activation_offload=False,
            save_frozen=True,
        )
        if path is None:
            return config
        return dataclasses.replace(
            config, path=path, revision=revision, gguf_file=None, init="pretrained", init_seed=0
        )

    def _prepare_models(self) -> None:
        models, needs = self.models, self.objective.needs | self.objective.importance_needs
        check_compatible(models.policy, models.others, needs)
        unshared = None
        if self.objective.importance.spans_prompt:
            unshared = "the importance asks for the gradients of each row's own prompt"
        else:
            unshared = self.family.unshared_prompts
        models.layout = choose_layout(self.layout, models.own, needs, unshared)
        models.own_logits = not all(head_agrees(model) for model in models.own)
        if models.own_logits:
            rank_zero_info("All logits are held at once: the model changes them after its head")

    def ask(self, batch: ResponseBatch, needs: frozenset[str]) -> dict[str, Tensor]:
        """What is needed of a batch, from the models and from the data."""
        return {**self.objective.ask(self.models, (batch, needs))[0]}

    def _prepare_reference(self, *loaders: Any) -> None:
        """Compute the reference's log-probs of all rows of the loaders, where they are kept."""
        self.cached_reference.prepare(self.trainer, self.models, *loaders)

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
