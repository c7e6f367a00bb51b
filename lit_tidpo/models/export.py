"""From a training checkpoint to a model folder that transformers loads."""

from __future__ import annotations

import dataclasses
import pickle
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

from lit_tidpo.errors import InputError, explained
from lit_tidpo.locations import locate
from lit_tidpo.models.adapters import frozen_names
from lit_tidpo.models.checkpoint_io import check_whole, read_folder, unreadable
from lit_tidpo.models.loading import build_policy
from lit_tidpo.models.policy import PolicyConfig, lora_options
from lit_tidpo.models.quantization import is_quantized
from lit_tidpo.models.quirks.generation import most_positions
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import inner_model, vocabulary_size
from lit_tidpo.models.tokenizer import load_tokenizer, policy_tokenizer

_PREFIX = "policy."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: A file that a Trainer wrote, or a folder that strategy ``model_parallel`` wrote.

    Returns:
        Its content, on the CPU.

    Raises:
        InputError: If the file is missing, corrupt or not a Lightning checkpoint.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {str(path)!r}: check the path")
    check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise unreadable(path, error) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{str(path)!r} is no Lightning checkpoint: it has no 'state_dict'")
    return content


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    adapter: bool = False,
) -> Path:
    """Write the policy of a checkpoint, with its tokenizer, for ``AutoModelForCausalLM``.

    Adapters are merged into their base, or written alone, for ``PeftModel.from_pretrained`` on it.

    Args:
        checkpoint: A file or folder that ``fit`` wrote.
        folder: New or empty folder.
        dtype: Type of the stored weights; by default as they were trained.
        adapter: Write the adapters alone.

    Returns:
        The folder.

    Raises:
        InputError: If the checkpoint cannot be used, or the folder holds something.
    """
    checkpoint, folder = checkpoint.expanduser(), folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        state = "is not empty" if folder.is_dir() else "is a file"
        raise InputError(f"export folder {str(folder)!r} {state}: choose a new one")
    stored = None if dtype is None else getattr(torch, dtype)
    return export_policy(read_checkpoint(checkpoint), checkpoint, folder, stored, adapter)


def export_policy(
    content: dict[str, Any],
    checkpoint: Path,
    folder: Path,
    dtype: torch.dtype | None = None,
    adapter: bool = False,
) -> Path:
    """Write the policy of a checkpoint that has been read, as :func:`export_checkpoint` does.

    The ``content`` is what :func:`read_checkpoint` returned; ``checkpoint`` is for messages alone.
    """
    with explained(f"checkpoint {str(checkpoint)!r} is of another make"):
        config = policy_config(content, checkpoint)
        data = dict(content.get("datamodule_hyper_parameters") or {})
        saved: dict[str, Any] = dict(content["state_dict"])
    if adapter and config.lora is None and config.adapter is None:
        raise InputError(f"checkpoint {str(checkpoint)!r} has no adapters: leave --adapter out")
    policy = _restored(config, saved, checkpoint)
    merges = not adapter and (config.lora is not None or config.adapter is not None)
    stored = dtype or policy.dtype
    if merges:
        policy = mergeable(policy)
    expected = _probe(policy)
    if not bool(expected.isfinite().all()):
        raise InputError(
            f"the weights in checkpoint {str(checkpoint)!r} give log-probs that are NaN or "
            "infinite: nothing was exported; take an earlier checkpoint"
        )
    if adapter:
        for each in policy.peft_config.values():
            each.base_model_name_or_path = locate(config.path)
            each.revision = config.revision
    elif merges:
        policy = policy.merge_and_unload()
        _check_same(expected, _probe(policy), policy.dtype, "merging its adapters")
    if policy.dtype != stored:
        policy = policy.to(stored)
        expected = _probe(policy)
    tokenizer = saved_tokenizer(data, config)
    # Beside it first, so that what does not give the checkpoint's log-probs is never taken for it.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        written = Path(beside) / "model"
        # The embeddings are the base's, but for rows of added tokens, which the adapter has.
        policy.save_pretrained(written, **({"save_embedding_layers": False} if adapter else {}))
        tokenizer.save_pretrained(written)
        as_written = PolicyConfig(str(written), dtype="auto", disable_dropout=False)
        if adapter:
            as_written = dataclasses.replace(config, lora=None, adapter=str(written), init_seed=0)
        again = build_policy(as_written).to(policy.dtype)
        _check_same(expected, _probe(again), policy.dtype, "writing it")
        if folder.exists():
            folder.rmdir()
        written.rename(folder)
    return folder


def _restored(config: PolicyConfig, saved: dict[str, Any], checkpoint: Path) -> Any:
    """The policy with the weights of a checkpoint."""
    # None need to be loaded first, unless the checkpoint lacks what was not trained.
    init = "random" if config.save_frozen else config.init
    policy: Any = build_policy(dataclasses.replace(config, init=init, disable_dropout=False))
    weights = {key[len(_PREFIX) :]: saved[key] for key in saved if key.startswith(_PREFIX)}
    if not config.save_frozen:
        state = policy.state_dict()
        weights |= {name: state[name] for name in frozen_names(policy)}
    with explained(f"checkpoint {str(checkpoint)!r} does not fit the model {config.path!r}"):
        policy.load_state_dict(weights)
    return policy


def _probe(policy: Any) -> torch.Tensor:
    """Log-probs of all tokens after each of some tokens, ``[T, V]``, in nats."""
    length = min(32, most_positions(policy) or 32)
    ids = torch.arange(1, length + 1) % vocabulary_size(policy)
    with evaluating(policy), torch.no_grad():
        logits: torch.Tensor = policy(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _check_same(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype, by: str) -> None:
    """Refuse a policy that has other log-probs than before.

    Raises:
        InputError: If any differs by more than rounding.
    """
    error = float((expected - found).abs().max())
    # Rounding grows with the size of what is rounded: large models give log-probs down to -50.
    limit = max(1e-3, 2e-4 * float(expected.abs().max())) if dtype == torch.float32 else 0.3
    if not error <= limit:
        raise InputError(
            f"{by} changes the policy's log-probs by {error:.3g} nats (expected at most "
            f"{limit:.3g}): nothing was exported; load the checkpoint in Python and save the "
            "policy there"
        )


def mergeable(policy: Any) -> Any:
    """A policy whose adapters can be merged into its base: in fp32, so that their sum is exact.

    Raises:
        InputError: If the base is quantised, where merging rounds away what was learned.
    """
    if is_quantized(inner_model(policy)):
        raise InputError(
            "adapters cannot be merged into a quantised base without loss: export them alone with "
            "--adapter, and merge them into the base as it was before"
        )
    return policy.float()


def policy_config(content: dict[str, Any], checkpoint: Path) -> PolicyConfig:
    """Which model the policy of a checkpoint was made of, and how.

    Args:
        content: What the checkpoint holds.
        checkpoint: Where it is.

    Raises:
        InputError: If it does not say so.
    """
    options = dict((content.get("hyper_parameters") or {}).get("policy") or {})
    if not options.get("path"):
        raise InputError(
            f"checkpoint {str(checkpoint)!r} does not say which model its policy is (it was "
            "attached in Python): load it there and call policy.save_pretrained(folder)"
        )
    # Kernels are a matter of the device that it was trained on.
    return PolicyConfig(**{**options, "lora": lora_options(options.get("lora")), "liger": None})


def saved_tokenizer(data: dict[str, Any], config: PolicyConfig) -> Any:
    """The tokenizer that the policy was trained with, and its chat template."""
    if data.get("tokenizer"):
        return load_tokenizer(
            data["tokenizer"],
            data.get("chat_template"),
            data.get("tokenizer_revision"),
            data.get("trust_remote_code", False),
            data.get("tokenizer_gguf_file"),
            config.added_tokens,
        )
    return policy_tokenizer(config)
