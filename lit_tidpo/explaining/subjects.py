"""What is explained: the models of a checkpoint, of a path, or of the caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import _load_state
from torch import nn

from lit_tidpo.devices.placement import default_device
from lit_tidpo.errors import InputError, explained
from lit_tidpo.losses.base import LossComponent
from lit_tidpo.models.export import policy_config, read_checkpoint, saved_tokenizer
from lit_tidpo.models.policy import PolicyConfig
from lit_tidpo.models.tokenizer import load_tokenizer
from lit_tidpo.modules.preference import PreferenceModule
from lit_tidpo.plugins.registry import LOSSES, load


@dataclass
class Subject:
    """Models that are explained.

    Attributes:
        module: Holds them.
        tokenizer: Their tokenizer.
        data: Options of the data that a checkpoint was trained on; None without a checkpoint.
        is_ours: Whether they were loaded here, and are nobody else's.
    """

    module: PreferenceModule
    tokenizer: Any
    data: dict[str, Any] | None = None
    is_ours: bool = True

    def hand_out_attentions(self) -> None:
        """Let the models run the attention that hands out its probabilities.

        Those of the caller stay as they are.
        """
        for model in self.module.models.own if self.is_ours else ():
            model.set_attn_implementation("eager")  # type: ignore[operator]


def subject_of(
    policy: str | Path | nn.Module,
    reference: str | nn.Module | None = None,
    tokenizer: Any = None,
) -> Subject:
    """Load what is explained.

    Args:
        policy: See :func:`lit_tidpo.explaining.explain.explain`.
        reference: See there.
        tokenizer: See there.

    Raises:
        InputError: If there is no such model, or what was given does not go together.
    """
    if isinstance(policy, nn.Module):
        return _attached(policy, reference, tokenizer)
    if isinstance(reference, nn.Module) or tokenizer is not None:
        raise InputError(
            f"policy={str(policy)!r} is loaded here, with its tokenizer and a reference by name: "
            "give no tokenizer and no reference that is a model, or give the policy as one, too"
        )
    path = Path(policy).expanduser()
    subject = (
        _of_a_checkpoint(path, reference)
        if path.suffix == ".ckpt"
        else _of_a_path(str(policy), reference)
    )
    subject.module.to(default_device()).eval()
    return subject


def _attached(policy: nn.Module, reference: str | nn.Module | None, tokenizer: Any) -> Subject:
    if tokenizer is None or isinstance(reference, str):
        raise InputError(
            "policy is a model: give its tokenizer, and a reference, if any, as a model, too"
        )
    module, was_training = _module(PolicyConfig(), None), policy.training
    module.attach(policy, reference)
    policy.train(was_training)
    return Subject(module, tokenizer, is_ours=False)


def _of_a_path(path: str, reference: str | None) -> Subject:
    module = _module(PolicyConfig(path), reference)
    module.configure_model()
    return Subject(module, load_tokenizer(path))


def _module(config: PolicyConfig, reference: str | None) -> PreferenceModule:
    """A module whose loss asks for no reference; no loss of it is computed."""
    losses = {"sft": load(LOSSES, "sft", LossComponent)()}
    # Padded rows serve every estimator.
    return PreferenceModule(config, reference, losses=losses, layout="padded")


def _of_a_checkpoint(path: Path, reference: str | None) -> Subject:
    content = read_checkpoint(path)
    config = policy_config(content, path)
    data = dict(content.get("datamodule_hyper_parameters") or {})
    data.pop("_instantiator", None)  # Lightning's command line notes beside them what built them
    replaced: dict[str, Any] = {} if reference is None else {"reference": reference}
    with explained(f"checkpoint {str(path)!r} is none of preference optimisation"):
        # What load_from_checkpoint does with a file once it has read it; folders serve as well.
        module: Any = _load_state(
            PreferenceModule, content, layout="padded", reference_cache=None, **replaced
        )
    return Subject(module, saved_tokenizer(data, config), data)
