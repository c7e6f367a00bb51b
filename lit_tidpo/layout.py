"""Which layout of rows the models can take, proven on a few tokens before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_tidpo.errors import InputError
from lit_tidpo.forward import Computation, Layout, run_models
from lit_tidpo.packed_attention import use_packed_attention
from lit_tidpo.policy import evaluating
from lit_tidpo.reference import Reference
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
        needs: Keys of :data:`lit_tidpo.contracts.NEEDS`.
        unshared: Why prompts cannot be shared; None if they can.

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
    if any(need.endswith(".attentions") for need in needs):
        return "attention probabilities are computed row by row"
    for model in models:
        name = type(model).__name__
        if not use_packed_attention(model):
            return f"{name} does not run sdpa through the attention interface of transformers"
        error = _largest_error(model, layout)
        if not error < _TOLERANCE.get(_dtype(model), 0.25):
            return f"{name} gives other log-probs then, by up to {error:.2g} nats"
    return None


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _largest_error(model: nn.Module, layout: Layout) -> float:
    """Largest difference of a log-prob from that of padded rows, in nats."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        batch = move_data_to_device(_probe(model), device)
        padded, other = (
            run_models(model, Reference(None), batch, frozenset(), Computation(each)).policy.logps
            for each in ("padded", layout)
        )
    return float((padded - other).abs().max())


def _probe(model: nn.Module) -> ResponseBatch:
    """Two prompts with two responses each, all of different lengths."""
    prompt_lengths = torch.tensor([5, 3]).repeat(2)
    lengths = prompt_lengths + torch.tensor([4, 7, 6, 2])
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids: Tensor = torch.arange(1, 41).reshape(4, 10).mul(7919) % vocabulary
    prompts = ids[:2].repeat(2, 1)
    return ResponseBatch(
        input_ids=torch.where(torch.arange(10) < prompt_lengths[:, None], prompts, ids),
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        roles=("chosen", "rejected"),
        index=torch.arange(2),
        counted=torch.ones(2, dtype=torch.bool),
    )
