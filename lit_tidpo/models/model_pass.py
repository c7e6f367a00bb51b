"""One pass of one language model over the rows of a batch, padded or packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lit_tidpo.devices.host_rows import Places
from lit_tidpo.errors import InputError
from lit_tidpo.functional.predictions import (
    Predictions,
    Projection,
    predictions,
    tiled_predictions,
)
from lit_tidpo.models.experts import router_loss
from lit_tidpo.models.needs import OF_A_MODEL
from lit_tidpo.models.packing import PackedRows
from lit_tidpo.models.quirks import attention_maps, evaluating, input_layer
from lit_tidpo.structures import ResponseBatch, Results


@dataclass
class Output:
    """What a model computed; ``K`` positions were kept.

    Attributes:
        embeddings: Input embeddings inside the graph, zero where no token was run, ``[N, T, H]``,
            where asked for.
        logits: Logits at the kept positions, ``[K, V]``; None where hidden states serve.
        hidden: What the output layer was given there, ``[K, H]``; None if it cannot be narrowed.
        attentions: Attention probabilities, one ``[N, heads, T, T]`` a layer, where asked for.
        router_loss: Balancing loss of a mixture of experts, ``[N]``, where asked for.
    """

    embeddings: Tensor | None
    logits: Tensor | None
    hidden: Tensor | None
    attentions: tuple[Tensor, ...] | None
    router_loss: Tensor | None = None


class ModelPass:
    """One model's pass over one batch, which serves the needs of :mod:`lit_tidpo.models.needs`.

    Args:
        model: A causal language model of transformers.
        batch: The rows to run.
        fields: What is asked of the model.
        home: Where results belong: the same rows, without the instruction that this model may have
            before its prompts.
        rows: The tokens to run, side by side; None runs padded rows.
        logits_at_once: Tokens times vocabulary beyond which logits are computed tile by tile.
        layer: The model's output layer; None where it is no module of its own.
        own_logits: Whether the model hands out its logits, or hidden states to which its output
            layer is applied here.
        factor: Scales the embeddings of response tokens, alike or each one (``[N, T, 1]``).

    Attributes:
        output: What the model computed.
        divergence: ``KL(model || policy)`` at the response tokens, ``[M]``, where asked for.
    """

    output: Output
    divergence: Tensor

    def __init__(
        self,
        model: nn.Module,
        batch: ResponseBatch,
        fields: frozenset[str],
        home: ResponseBatch,
        rows: PackedRows | None = None,
        logits_at_once: int = 2**24,
        layer: nn.Module | None = None,
        own_logits: bool = False,
        factor: float | Tensor = 1.0,
    ) -> None:
        host, device = batch.host, batch.input_ids.device
        response = Places(host.response_mask, device)
        self.model = model
        self.batch = batch
        self.fields = fields
        self.home = home
        self._layer = layer
        head = None if own_logits else layer
        assert head is None or isinstance(head, nn.Linear)
        self._head = head
        self._rows = rows
        self._labels = response.of(batch.input_ids)
        # As wide as the results unless an instruction stands before the prompts.
        self._responses = response if home is batch else Places(home.host.response_mask, device)
        self._logits_at_once = logits_at_once
        self._needs = [OF_A_MODEL[field] for field in fields]
        # A response token is predicted one position before its own.
        self._predicting = kept = response.mask.roll(-1, dims=-1)
        self._last = host.positions == host.lengths[:, None] - 1
        if any(need.last for need in self._needs):
            kept = kept | self._last
        self._kept = Places(kept, device)
        self.output = run_model(
            model,
            batch,
            self._kept,
            layer,
            rows,
            # Hooks that transformers puts in where they are first asked for are there from now on.
            attentions=any(need.eager for need in self._needs),
            router="router_loss" in fields,
            with_embeddings=any(need.attributed for need in self._needs),
            with_logits=self._head is None,
            factor=factor,
        )

    def predict(self, other: ModelPass | None = None) -> Predictions:
        """Reduce the logits that predict response tokens; with another model ``KL(other || self)``.

        Args:
            other: A pass over the same responses.

        Returns:
            Quantities of each response token, ``[M]``.
        """
        more = [any(getattr(n, flag) for n in self._needs) for flag in ("entropy", "collision")]
        size = 0 if self._head is None else self._head.out_features
        if self.output.logits is not None or len(self._labels) * size <= self._logits_at_once:
            reference = None if other is None else other._logits
            return predictions(self._logits, self._labels, reference, *more)
        tile = max(1, self._logits_at_once // size)
        projection = None if other is None else other._projection()
        return tiled_predictions(self._projection(), self._labels, tile, projection, *more)

    @cached_property
    def predicted(self) -> Predictions:
        """Quantities of the response tokens, ``[M]`` each."""
        return self.predict()

    @property
    def hidden(self) -> Tensor:
        """What the output layer predicts the response tokens from, ``[M, H]``."""
        return self._hidden_at(self._predicting)

    @property
    def final_logits(self) -> Tensor:
        """Logits at the last token of each row, ``[N, V]``."""
        return self._logits_at(self._last)

    @property
    def is_compared(self) -> bool:
        """Whether it is asked for its divergence from the policy."""
        return any(need.compared for need in self._needs)

    def compare(self, others: Sequence[ModelPass]) -> None:
        """Let other models' passes over the same responses know how far they are from this one."""
        for place, other in enumerate(others):
            together = self.predict(other)
            other.divergence = together.kl
            if place == 0:
                self.predicted = together

    def fill(self, name: str, compared: bool = False) -> dict[str, Any]:
        """What was asked of the model.

        Args:
            name: Name of the model.
            compared: What hangs on the policy's pass, too, or else what does not.

        Returns:
            Values by need.
        """
        values = {}
        for field in sorted(self.fields):
            need = OF_A_MODEL[field]
            if need.compared == compared:
                assert need.fill is not None  # models' needs have one
                value = need.fill(self)
                value = self._responses.table(value) if need.by_token else value
                values[f"{name}.{field}"] = value
        return values

    @torch.no_grad()
    def attend(self, rows: ResponseBatch) -> tuple[Tensor, ...]:
        """Attention that the last token of each of some rows pays, in eval mode.

        Args:
            rows: Other rows, on the model's device.

        Returns:
            ``[N, heads, T]`` a layer.
        """
        host = rows.host
        none = Places(torch.zeros_like(host.attention_mask), rows.input_ids.device)
        with evaluating(self.model):
            output = run_model(
                self.model, rows, none, self._layer, attentions=True, with_logits=False
            )
        assert output.attentions is not None
        place, last = torch.arange(len(host.lengths)), host.lengths - 1
        return tuple(layer[place, :, last] for layer in output.attentions)

    def scaled(self, factor: float | Tensor) -> Results:
        """Run once more with the embeddings of response tokens times a factor.

        Args:
            factor: From 0 to 1; one for all tokens, or one for each, ``[N, T, 1]``.

        Returns:
            What was asked of the model.
        """
        with evaluating(self.model):  # without dropout, which would draw random numbers
            other = ModelPass(
                self.model,
                self.batch,
                self.fields,
                self.home,
                self._rows,
                self._logits_at_once,
                self._layer,
                self._head is None,
                factor,
            )
            values = other.fill("policy")
        return Results(self.batch, values, self.home.response_mask)

    @cached_property
    def _logits(self) -> Tensor:
        return self._logits_at(self._predicting)

    def _logits_at(self, positions: Tensor) -> Tensor:
        """Logits at some of the kept positions, ``[N, T]`` bool, in row order."""
        if self.output.logits is not None:
            return self._of_kept(self.output.logits, positions)
        assert self._head is not None
        logits: Tensor = self._head(self._hidden_at(positions))
        return logits

    def _hidden_at(self, positions: Tensor) -> Tensor:
        """What the output layer is given at some of the kept positions, in row order."""
        if self.output.hidden is None:
            raise InputError(
                f"{type(self.model).__name__} hands out no last hidden states: its output layer "
                "is no module of its own"
            )
        return self._of_kept(self.output.hidden, positions)

    def _of_kept(self, values: Tensor, positions: Tensor) -> Tensor:
        """Values of some of the kept positions."""
        if positions is self._kept.mask:
            return values
        return Places(positions[self._kept.mask], values.device).of(values)

    def _projection(self) -> Projection:
        assert self._head is not None
        return Projection(self.hidden, self._head.weight, self._head.bias)


def run_model(
    model: nn.Module,
    batch: ResponseBatch,
    kept: Places,
    layer: nn.Module | None,
    rows: PackedRows | None = None,
    attentions: bool = False,
    router: bool = False,
    with_embeddings: bool = False,
    with_logits: bool = True,
    factor: float | Tensor = 1.0,
) -> Output:
    """Run a model on rows, its output layer on the kept positions alone.

    Args:
        model: A causal language model of transformers.
        batch: The rows.
        kept: Positions whose logits are wanted, ``[N, T]``.
        layer: The model's output layer; None where it is no module of its own.
        rows: The tokens to run, side by side; None runs padded rows.
        attentions: Whether attention probabilities are wanted.
        router: Whether the balancing loss of a mixture of experts is wanted.
        with_embeddings: Whether the input embeddings are wanted, with a graph even if frozen.
        with_logits: Whether the model's own logits are wanted, or hidden states; where the output
            layer cannot be narrowed, it is always logits.
        factor: Scales the embeddings of response tokens.

    Returns:
        The output.

    Raises:
        InputError: If the model has no interface to its embeddings.
    """
    inputs: dict[str, Any]
    if rows is None:
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "output_attentions": attentions,
            **({"output_router_logits": True} if router else {}),
        }
    else:
        kept = Places(kept.mask[rows.taken.mask].unsqueeze(0), kept.device)
        inputs = {
            "input_ids": rows.taken.of(batch.input_ids).unsqueeze(0),
            "position_ids": rows.positions,
            # One that transformers takes as it is; else it makes one of all tokens against all.
            "attention_mask": torch.empty(1, 1, 1, 1, device=batch.input_ids.device),
            "packed_rows": rows,
        }
    embeddings: list[Tensor] = []
    with ExitStack() as hooks:
        if with_embeddings:
            embeddings = hooks.enter_context(_captured_embeddings(model, batch, rows, factor))
        end = None if rows is None or rows.prompts is None else rows.prompts.end
        hidden = hooks.enter_context(_narrowed_head(layer, kept, with_logits, end))
        output = model(**inputs, use_cache=False)
    logits = None
    if not hidden:
        logits = _hung_on(kept.of(output.logits), end)
    elif with_logits:
        logits = output.logits[0]
    return Output(
        embeddings[0] if embeddings else None,
        logits,
        hidden[0] if hidden else None,
        attention_maps(output, batch.input_ids.shape[1]) if attentions else None,
        router_loss(model, output).expand(len(batch.lengths)) if router else None,
    )


@contextmanager
def _captured_embeddings(
    model: nn.Module, batch: ResponseBatch, rows: PackedRows | None, factor: float | Tensor
) -> Iterator[list[Tensor]]:
    """Collect the output of the input embeddings; frozen embeddings get a graph of their own."""
    captured: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if rows is not None:
            # By row and position, so that an estimator need not know how the rows are laid out.
            output = rows.taken.table(output[0])
        if isinstance(factor, Tensor) or factor != 1:
            output = output.where(~batch.response_mask.unsqueeze(-1), factor * output)
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        captured.append(output)
        if rows is None and output.is_leaf and output.requires_grad:
            return output.clone()  # some models change their embeddings in place, such as CTRL
        return output if rows is None else rows.taken.of(output).unsqueeze(0)

    handle = input_layer(model).register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def _hung_on(values: Tensor, end: Tensor | None) -> Tensor:
    """Values that hang on a 0, if there is one."""
    return values if end is None else values + end


@contextmanager
def _narrowed_head(
    layer: nn.Module | None, kept: Places, with_logits: bool, end: Tensor | None
) -> Iterator[list[Tensor]]:
    """Let the output layer see the kept positions alone: ``[N, T, H]`` becomes ``[1, K, H]``.

    Yields:
        A list that holds what the output layer was given, once that has happened. A model whose
        head is no module of its own computes every position.
    """
    hidden: list[Tensor] = []

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs[0].shape[:2] != kept.mask.shape:
            return None
        hidden.append(_hung_on(kept.of(inputs[0]), end))
        return (hidden[0][: None if with_logits else 0].unsqueeze(0), *inputs[1:])

    handle = layer.register_forward_pre_hook(narrow) if layer is not None else None
    try:
        yield hidden
    finally:
        if handle is not None:
            handle.remove()
