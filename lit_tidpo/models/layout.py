"""Which layout of rows the models can take, proven on a few tokens before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.models.models import Layout, Models
from lit_tidpo.models.needs import find
from lit_tidpo.models.packing import recorded_windows, use_packed_attention
from lit_tidpo.models.quirks import evaluating, vocabulary_size
from lit_tidpo.structures import ResponseBatch

LayoutChoice = Literal["auto", "padded", "packed", "shared_prompt"]


def choose_layout(
    wanted: LayoutChoice,
    models: Sequence[nn.Module],
    needs: frozenset[str],
    unshared: str | None = None,
) -> Layout:
    """Decide how rows are laid out, and prepare the models for it.

    ``auto`` shares prompts, or else packs, where that gives the same log-probs as padded rows, and
    pads otherwise.

    Args:
        wanted: What the user chose.
        models: The policy, and the reference if it is a model of its own.
        needs: Needs of :mod:`lit_tidpo.models.needs`.
        unshared: Why prompts cannot be shared; None if nothing is known to prevent it.

    Returns:
        The layout.

    Raises:
        InputError: If the chosen layout cannot serve.
    """
    if wanted == "padded":
        return wanted
    layout: Layout = "shared_prompt" if unshared is None else "packed"
    if wanted != "auto":
        layout = wanted
    obstacle = unshared if layout == "shared_prompt" else None
    obstacle = obstacle or _obstacle(layout, models, needs)
    if obstacle is None:
        return layout
    if wanted == "auto":
        rank_zero_info(f"Rows are padded: {obstacle}")
        return "padded"
    raise InputError(f"layout={wanted} cannot be used: {obstacle}. Set layout=padded, or auto")


def _obstacle(layout: Layout, models: Sequence[nn.Module], needs: frozenset[str]) -> str | None:
    if any(find(need).eager for need in needs):
        return "attention probabilities are computed row by row"
    for model in models:
        name = type(model).__name__
        if not use_packed_attention(model):
            return f"{name} does not run sdpa through the attention interface of transformers"
        with recorded_windows() as windows:
            error = _largest_error(model, layout)
        if windows.of_masks - windows.of_layers:
            return f"{name} has windows in its masks that its attention layers do not know of"
        if not error < _TOLERANCE.get(_dtype(model), 0.25):
            return f"{name} gives other log-probs then, by up to {error:.2g} nats"
    return None


def head_agrees(model: nn.Module) -> bool:
    """Whether the output layer, applied outside the model, gives the model's own log-probs."""
    error = _difference(Models(model), Models(model, own_logits=True))
    return error < _TOLERANCE.get(_dtype(model), 0.25)


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _largest_error(model: nn.Module, layout: Layout) -> float:
    """Largest difference of a log-prob from that of padded rows, in nats."""
    return _difference(Models(model), Models(model, layout=layout))


def _difference(*ways: Models) -> float:
    """Largest difference between the log-probs of a model run in two ways, in nats."""
    model = ways[0].policy
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        batch = move_data_to_device(_probe(model), device)
        one, other = (way.run([(batch, frozenset())])[0]["policy.logps"] for way in ways)
    return float((one - other).abs().max())


def _probe(model: nn.Module) -> ResponseBatch:
    """Two prompts with two responses each, all of different lengths."""
    prompt_lengths = torch.tensor([5, 3]).repeat(2)
    lengths = prompt_lengths + torch.tensor([4, 7, 6, 2])
    vocabulary = vocabulary_size(model)
    ids: Tensor = torch.arange(1, 45).reshape(4, 11).mul(7919) % vocabulary
    prompts = ids[:2].repeat(2, 1)
    return ResponseBatch(
        input_ids=torch.where(torch.arange(11) < prompt_lengths[:, None], prompts, ids),
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        roles=("chosen", "rejected"),
        index=torch.arange(2),
        counted=torch.ones(2, dtype=torch.bool),
    )
