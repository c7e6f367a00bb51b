"""A reference that follows the policy."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.models.reference import FrozenModel
from lit_tidpo.modules.preference import PreferenceModule


class MovingReference(Callback):
    """Moves the reference towards the policy during training (TR-DPO, arXiv 2404.09656, Eq. 5, 6).

    ``reference <- alpha * policy + (1 - alpha) * reference`` after every ``every_n_steps``
    optimizer steps. With ``alpha`` 1 it is replaced; with ``every_n_steps`` 1 it is a running
    average of the policy. Checkpoints hold it, and are larger by it.

    Args:
        alpha: Share of the policy, above 0, up to 1.
        every_n_steps: Optimizer steps between two moves.
    """

    def __init__(self, alpha: float = 0.6, every_n_steps: int = 512) -> None:
        if not 0 < alpha <= 1:
            raise InputError(f"moving reference alpha={alpha}: expected more than 0, up to 1")
        if every_n_steps < 1:
            raise InputError(f"moving reference every_n_steps={every_n_steps}: expected 1 or more")
        self.alpha = alpha
        self.every_n_steps = every_n_steps
        self._reference: nn.Module | None = None
        self._moved = 0
        self._kept: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the reference, and give it the weights that a checkpoint kept.

        Raises:
            InputError: If there is no model of its own that could move.
        """
        self._reference = _movable(pl_module)
        self._moved = trainer.global_step
        if self._kept is not None:
            self._reference.load_state_dict(self._kept)
            self._kept = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move it, where the step is due."""
        step = trainer.global_step
        if step == self._moved or step % self.every_n_steps:
            return
        self._moved = step
        assert isinstance(pl_module, PreferenceModule)
        assert self._reference is not None
        moving, policy = self._reference.parameters(), pl_module.built_policy.parameters()
        with torch.no_grad():
            for own, other in zip(moving, policy, strict=True):
                own.lerp_(other.to(own), self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """The reference's weights."""
        return {} if self._reference is None else {"reference": self._reference.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until the reference is there."""
        self._kept = state_dict.get("reference")


def _movable(module: LightningModule) -> nn.Module:
    """The reference of a module, if it is of the policy's make and run at each step."""
    if not isinstance(module, PreferenceModule):
        raise InputError(f"{type(module).__name__} has no reference that could move")
    reference = module.models.others.get("reference")
    if not isinstance(reference, FrozenModel) or module.family.in_step:
        raise InputError(
            "the reference cannot move: expected a frozen model of its own, not the base of "
            "adapters, nor none, nor one that the strategy shares out over the ranks"
        )
    if module.cached_reference.folder is not None:
        raise InputError("model.reference_cache keeps log-probs, but the reference moves: unset it")
    model = reference.model
    assert model is not None  # nothing lets go of it without a cache
    shapes = [[each.shape for each in m.parameters()] for m in (model, module.built_policy)]
    if shapes[0] != shapes[1]:
        raise InputError("the reference cannot move: it has other parameters than the policy")
    return model
