"""Log-probs of the reference, computed once and kept on disk.

Everything is named by its content: a row by its tokens, a folder by the reference, the precision
and the rows. So a cache cannot be taken for that of another model, tokenizer, template, truncation
or data set, and neither the order of the rows nor the split that they come from matters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_tidpo.devices.host_rows import to_device
from lit_tidpo.errors import InputError
from lit_tidpo.locations import file_digest
from lit_tidpo.structures import ResponseBatch

_MANIFEST = "manifest.json"
_KEY_BYTES = 16
# Where a model lies and who saved it change nothing that it computes.
_WHEREABOUTS = ("_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version")


def row_keys(batch: ResponseBatch) -> list[bytes]:
    """Name each row by its tokens, the length of its prompt and what of the response is context.

    Args:
        batch: Rows of any roles.

    Returns:
        One key per row; padding and the row's place do not count.
    """
    host = batch.host
    tokens = host.input_ids.long().numpy()
    starts, ends = host.prompt_lengths.tolist(), host.lengths.tolist()
    named = [
        hashlib.sha256(start.to_bytes(8, "little") + row[:end].tobytes())
        for row, start, end in zip(tokens, starts, ends, strict=True)
    ]
    if host.context is not None:
        inside = host.context & host.attention_mask
        for name, row, end in zip(named, inside, ends, strict=True):
            if row.any():  # so that other rows are named as in a batch of their own
                name.update(row[:end].numpy().tobytes())
    return [name.digest()[:_KEY_BYTES] for name in named]


def rows_digest(keys: Iterable[bytes]) -> str:
    """Name a set of rows, in whatever order and number they are met."""
    return hashlib.sha256(b"".join(sorted(set(keys)))).hexdigest()


def describe(model: nn.Module, base_only: bool = False) -> dict[str, str]:
    """Digests of what a model's log-probs depend on.

    Args:
        model: The model in its starting state, whole: not sharded yet.
        base_only: Leave out what is trained, because the base under new adapters is meant.

    Returns:
        Digests of the weights and of the configuration.
    """
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if base_only and name in trained:
            continue
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings: Any = model.config
    parts: dict[str, Any] = {
        "model": settings.to_dict(),
        "attention": getattr(settings, "_attn_implementation", None),
    }
    if not base_only:
        for name, adapter in getattr(model, "peft_config", {}).items():
            parts[f"adapter {name}"] = adapter.to_dict()
    for part in parts.values():
        if isinstance(part, dict):
            for name in _WHEREABOUTS:
                part.pop(name, None)
    return {"weights": weights.hexdigest(), "config": fingerprint(parts)}


def fingerprint(content: Mapping[str, Any]) -> str:
    """Digest of plain data; a set counts as its sorted entries."""
    text = json.dumps(content, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def write_part(file: Path, rows: Mapping[bytes, Tensor]) -> None:
    """Write the log-probs of some rows.

    Args:
        file: New file in the folder that :func:`complete` will move.
        rows: Log-probs of the response tokens by the row's key, fp32, at least one row.
    """
    tensors = {
        "keys": torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8),
        "lengths": torch.tensor([len(row) for row in rows.values()]),
        "logps": torch.cat(list(rows.values())),
    }
    save_file(tensors, file)


def complete(partial: Path, folder: Path, content: Mapping[str, Any]) -> None:
    """Make a folder of written parts a cache, at one blow.

    Args:
        partial: The parts.
        folder: Where they belong; if it is there already, another run was faster and the parts go.
        content: What the log-probs were made of; ``folder`` is named by its fingerprint.
    """
    parts = {file.name: file_digest(file) for file in sorted(partial.iterdir())}
    text = json.dumps({"content": content, "parts": parts}, indent=2)
    (partial / _MANIFEST).write_text(text + "\n", encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(partial)


class KeptLogps:
    """Log-probs of rows, read from completed folders; the files stay on disk until looked at."""

    def __init__(self) -> None:
        self._logps: list[Tensor] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}  # part, first and last + 1
        self._opened = False

    def open(self, folder: Path) -> None:
        """Add the rows of a folder.

        Args:
            folder: What :func:`complete` left.

        Raises:
            InputError: If anything in it is missing or is not what was written.
        """
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            sound = fingerprint(manifest["content"]) == folder.name and all(
                file_digest(folder / name) == digest for name, digest in manifest["parts"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder) from error
        if not sound:
            raise _damaged(folder)
        for name in manifest["parts"]:
            self._add(load_file(folder / name))
        self._opened = True

    def _add(self, part: Mapping[str, Tensor]) -> None:
        keys = part["keys"].numpy().tobytes()
        ends = part["lengths"].cumsum(0).tolist()
        for row, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            key = keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]
            self._places[key] = (len(self._logps), start, end)
        self._logps.append(part["logps"])

    def lookup(self, batch: ResponseBatch) -> Tensor | None:
        """Log-probs of a batch.

        Args:
            batch: Rows of any roles.

        Returns:
            Log-probs of the response tokens in nats, zero elsewhere, ``[N, T]``, where the batch
            is; None before any folder was opened.

        Raises:
            InputError: If a row is not there.
        """
        if not self._opened:
            return None
        found = torch.zeros(batch.input_ids.shape)
        mask = batch.host.response_mask
        counts = mask.sum(-1).tolist()
        for row, key in enumerate(row_keys(batch)):
            place = self._places.get(key)
            if place is None or place[2] - place[1] != counts[row]:
                pair = batch.of_rows(batch.host.index)[row].item()
                raise InputError(
                    f"model.reference_cache has no log-probs of pair {pair} of the data set with "
                    "these tokens: expected the rows that the data had before the first step; "
                    "leave reference_cache out for data that change"
                )
            part, first, last = place
            found[row, mask[row]] = self._logps[part][first:last]
        return to_device(found, batch.input_ids.device)


def _damaged(folder: Path) -> InputError:
    return InputError(
        f"the reference cache {str(folder)!r} is damaged or cannot be read: delete that folder, "
        "and it is computed again"
    )
