"""One pass of one language model over the rows of a batch, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
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
from lit_tidpo.models.forward import Output, run_model
from lit_tidpo.models.needs import OF_A_MODEL
from lit_tidpo.models.packed_rows import PackedRows
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.structures import ResponseBatch, Results


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
