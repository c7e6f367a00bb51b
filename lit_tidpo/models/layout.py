"""Which layout of rows the models can take, proven on a few tokens before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.models import Layout, Models
from lit_tidpo.models.needs import find
from lit_tidpo.models.packed_attention import recorded_windows, use_packed_attention
from lit_tidpo.models.proofs import can_run, proving, sources
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import vocabulary_size
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
    for model in models:
        _check_padding(model)
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
    padded = sorted(need for need in needs if find(need).padded)
    if padded:
        return f"{padded[0]} is computed row by row"
    for model in models:
        name = type(model).__name__
        if not use_packed_attention(model):
            return f"{name} does not run sdpa through the attention interface of transformers"
        try:
            with recorded_windows() as windows, explained(f"{name} cannot run rows side by side"):
                error, leak = _largest_error(model, layout), _leaks(model, layout)
        except InputError as found:
            return str(found)
        if windows.of_masks - windows.of_layers:
            return f"{name} has windows in its masks that its attention layers do not know of"
        if not error < _TOLERANCE.get(_dtype(model), 0.25):
            return f"{name} gives other log-probs then, by up to {error:.2g} nats"
        if leak:
            return f"{name} lets a row see those beside it then"
    return None


def _check_padding(model: nn.Module) -> None:
    """Refuse a model whose rows do not get the log-probs that they get alone.

    Raises:
        InputError: If they differ.
    """
    if not can_run(model):
        return
    name, batch = type(model).__name__, _probe(model)
    with evaluating(model), torch.no_grad(), explained(f"{name} cannot run padded rows"):
        padded = Models(model, own_logits=True).run([(batch, frozenset())])[0]["policy.logps"]
        error = 0.0
        for row, length in enumerate(batch.lengths.tolist()):
            ids = batch.input_ids[row, :length]
            logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
            alone = logits[:-1].float().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            response = slice(int(batch.prompt_lengths[row]), length)
            difference = padded[row, response] - alone[response.start - 1 :]
            error = max(error, float(difference.abs().max()))
    if not error < _TOLERANCE.get(_dtype(model), 0.25):
        raise InputError(
            f"{name} gives other log-probs to rows that are padded than to the same rows alone, by "
            f"up to {error:.2g} nats: it cannot be trained in batches, take another model"
        )


def head_agrees(model: nn.Module) -> bool:
    """Whether the output layer, applied outside the model, gives the model's own log-probs."""
    error = _difference(Models(model), Models(model, own_logits=True))
    return error < _TOLERANCE.get(_dtype(model), 0.25)


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _leaks(model: nn.Module, layout: Layout) -> bool:
    """Whether a row sees any other."""
    with proving(model):
        batch, row = _probe(model), 2
        (found,) = Models(model, layout=layout).run([(batch, frozenset({"policy.embeddings"}))])
        seen = sources(found["policy.logps"][row], found["policy.embeddings"])
    seen[row] = False
    return bool(seen.any())


def _largest_error(model: nn.Module, layout: Layout) -> float:
    """Largest difference of a log-prob from that of padded rows, in nats."""
    return _difference(Models(model), Models(model, layout=layout))


def _difference(*ways: Models) -> float:
    """Largest difference between the log-probs of a model run in two ways, in nats."""
    model = ways[0].policy
    with evaluating(model), torch.no_grad():
        batch = _probe(model)
        one, other = (way.run([(batch, frozenset())])[0]["policy.logps"] for way in ways)
    return float((one - other).abs().max())


def _probe(model: nn.Module) -> ResponseBatch:
    """Two prompts with two responses each, all of different lengths, on the model's device."""
    prompt_lengths = torch.tensor([5, 3]).repeat(2)
    lengths = prompt_lengths + torch.tensor([4, 7, 6, 2])
    vocabulary = vocabulary_size(model)
    ids: Tensor = torch.arange(1, 45).reshape(4, 11).mul(7919) % vocabulary
    prompts = ids[:2].repeat(2, 1)
    batch = ResponseBatch(
        input_ids=torch.where(torch.arange(11) < prompt_lengths[:, None], prompts, ids),
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        roles=("chosen", "rejected"),
        index=torch.arange(2),
        counted=torch.ones(2, dtype=torch.bool),
    )
    moved: ResponseBatch = move_data_to_device(batch, next(model.parameters()).device)
    return moved
