"""The models of a run, and what is computed of rows by all of them in one go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from lit_tidpo.devices.host_rows import Places
from lit_tidpo.errors import InputError
from lit_tidpo.models.forward import run_model
from lit_tidpo.models.kept_logps import KeptLogps
from lit_tidpo.models.liger import prove_liger
from lit_tidpo.models.model_pass import ModelPass
from lit_tidpo.models.needs import OF_A_MODEL, fields_of, models_of
from lit_tidpo.models.packed_rows import PackedRows
from lit_tidpo.models.quirks.attention import learned_positions, stretched_beyond
from lit_tidpo.models.quirks.parts import head_outside, output_layer, vocabulary_size
from lit_tidpo.models.reference import OtherModel
from lit_tidpo.models.sharding import is_sharded
from lit_tidpo.structures import ResponseBatch, Results

Layout = Literal["padded", "packed", "shared_prompt"]

Request = tuple[ResponseBatch, frozenset[str]]
"""Rows, and what is needed of them; the policy's log-probs always are."""


class Models:
    """A policy and the models that it is compared with.

    Every choice of how rows are computed gives the same values and gradients.

    Args:
        policy: The policy.
        others: Further models by name; ``reference`` is one of them.
        layout: How rows lie in the models' batches. ``padded``: all rows as long as the longest.
            ``packed``: the tokens of all rows side by side. ``shared_prompt``: packed, and each
            prompt once for all its responses. Packed rows ask for
            :func:`lit_tidpo.models.packed_attention.use_packed_attention`.
        logits_at_once: Tokens times vocabulary beyond which logits are computed tile by tile.
        own_logits: Whether the models hand out their logits, as they must where they change them
            after the output layer. Otherwise it is applied here, to the hidden states that count.

    Attributes:
        kept: Log-probs of the reference that are known; rows of the data are looked up there.
    """

    def __init__(
        self,
        policy: nn.Module,
        others: dict[str, OtherModel] | None = None,
        layout: Layout = "padded",
        logits_at_once: int = 2**24,
        own_logits: bool = False,
    ) -> None:
        self.policy = policy
        self.others = others or {}
        self.layout = layout
        self.logits_at_once = logits_at_once
        self.own_logits = own_logits
        self.kept = KeptLogps()

    @cached_property
    def _hands_out_logits(self) -> bool:
        """Whether a model hands out its logits: then all do, to be compared."""
        return self.own_logits or any(head_outside(model) is None for model in self.own)

    @cached_property
    def _longest_row(self) -> tuple[int, str] | None:
        """Tokens that a row may have, and why; None without a limit."""
        table, beyond = learned_positions(self.policy), stretched_beyond(self.policy)
        if table is not None:
            return table, f"has learned positions for {table}"
        if beyond is not None:
            return beyond, (
                f"stretches its positions beyond {beyond} by the longest row of a batch, so that "
                "the others would have other log-probs"
            )
        return None

    @cached_property
    def _vocabulary(self) -> int:
        return vocabulary_size(self.policy)

    @property
    def own(self) -> list[nn.Module]:
        """The policy, and what else is a model of its own."""
        models = [other.model for other in self.others.values()]
        return [self.policy, *(model for model in models if model is not None)]

    def run(self, requests: Sequence[Request]) -> list[Results]:
        """Run batches that have their prompts in common, such as pairs and their anchors.

        Args:
            requests: Batches, each with what is needed of it.

        Returns:
            For each batch what was asked for and the policy's log-probs. Those of the policy are
            inside the graph if gradients are enabled; of other models, what a gradient is asked of.

        Raises:
            InputError: If the rows cannot be run.
        """
        batches = [batch for batch, _ in requests]
        self._check(batches)
        found = [Results(batch, {}) for batch in batches]
        asked = [
            needs - self._look_up(needs, into)
            for (_, needs), into in zip(requests, found, strict=True)
        ]
        compared: list[dict[str, ModelPass]] = [{} for _ in requests]
        # Others go first: switching adapters must not fall between forward and backward.
        for name in sorted(frozenset[str]().union(*map(models_of, asked)) - {"policy"}):
            if name not in self.others:
                raise InputError(
                    f"no model {name!r} was built or attached, only {sorted(self.others)}: hand it "
                    "over by attach(policy, models={...})"
                )
            other, fields = self.others[name], [fields_of(needs, name) for needs in asked]
            graph = any(OF_A_MODEL[field].attributed for each in fields for field in each)
            with (
                other.active(self.policy, batches[0].input_ids.device) as model,
                torch.set_grad_enabled(graph),
            ):
                for place, run in self._passes(model, found, fields, other).items():
                    found[place] |= run.fill(name)
                    if run.is_compared:
                        compared[place][name] = run
        fields = [fields_of(needs, "policy") | {"logps"} for needs in asked]
        for place, run in self._passes(self.policy, found, fields).items():
            run.compare(list(compared[place].values()))
            found[place] |= run.fill("policy")
            for name, beside in compared[place].items():
                found[place] |= beside.fill(name, compared=True)
        return found

    def run_reference(self, batch: ResponseBatch) -> Tensor:
        """Log-probs of a batch under the reference, kept or not, ``[N, T]``."""
        with self.others["reference"].active(self.policy, batch.input_ids.device) as model:
            # In the policy's place: nothing else has to run.
            alone = Models(model, {}, self.layout, self.logits_at_once, self.own_logits)
            logps: Tensor = alone.run([(batch, frozenset())])[0]["policy.logps"]
        return logps

    def _check(self, batches: Sequence[ResponseBatch]) -> None:
        """Refuse rows that the models cannot run, or not in this layout."""
        limit = self._longest_row
        for batch in (each.host for each in batches):
            prompts, lengths = batch.prompt_lengths, batch.lengths
            fits = (prompts >= 1) & (prompts <= lengths) & (lengths <= batch.input_ids.shape[1])
            known = batch.input_ids.max() < self._vocabulary
            if not bool(known & fits.all()):
                if not bool(known):
                    raise InputError(
                        f"a row has the token id {int(batch.input_ids.max())}, but "
                        f"{type(self.policy).__name__} has embeddings for ids below "
                        f"{self._vocabulary}: use its own tokenizer (data.tokenizer)"
                    )
                row = int(fits.long().argmin())
                raise InputError(
                    f"row {row} of a batch has prompt_lengths={int(prompts[row])} and "
                    f"lengths={int(lengths[row])}: expected 1 <= prompt_lengths <= lengths <= "
                    f"{batch.input_ids.shape[1]}, the width of input_ids"
                )
            if limit is not None and int(lengths.max()) > limit[0]:
                raise InputError(
                    f"a row has {int(lengths.max())} tokens, but {type(self.policy).__name__} "
                    f"{limit[1]}: set data.max_length to {limit[0]} or less"
                )
        if self.layout == "shared_prompt":
            _check_same_prompts(batches)

    def _look_up(self, needs: frozenset[str], into: Results) -> frozenset[str]:
        """Take what is kept of the reference, where that is all that is asked of it."""
        if fields_of(needs, "reference") != {"logps"} or into.batch.sampled:
            return frozenset()
        logps = self.kept.lookup(into.batch)
        if logps is None:
            return frozenset()
        into["reference.logps"] = logps
        return frozenset({"reference.logps"})

    def _passes(
        self,
        model: nn.Module,
        found: Sequence[Results],
        fields: Sequence[frozenset[str]],
        other: OtherModel | None = None,
    ) -> dict[int, ModelPass]:
        """Run one model on the batches of which something is asked of it."""
        prove_liger(model)
        layer = output_layer(model)
        passes: dict[int, ModelPass] = {}
        prompts = None
        for place, (results, asked) in enumerate(zip(found, fields, strict=True)):
            if not asked:
                continue
            batch = results.batch if other is None else other.rows(results.batch)
            if self.layout == "shared_prompt" and not passes:
                prompts = _run_prompts(model, layer, batch)
            rows = None if self.layout == "padded" else _packed_rows(batch, prompts)
            passes[place] = ModelPass(
                model,
                batch,
                asked,
                results.batch,
                rows,
                self.logits_at_once,
                layer,
                self._hands_out_logits,
            )
        return passes


def _packed_rows(batch: ResponseBatch, prompts: PackedRows | None) -> PackedRows:
    host = batch.host
    if prompts is None:
        return PackedRows(host.attention_mask, batch)
    # The last token of the prompt predicts the first one of the response.
    first = host.prompt_lengths[:, None] - 1
    return PackedRows(host.attention_mask & (host.positions >= first), batch, prompts)


def _run_prompts(
    model: nn.Module, layer: nn.Module | None, batch: ResponseBatch
) -> PackedRows | None:
    """Run each prompt once, up to the token before its last, for its keys and values."""
    first = batch.role(batch.roles[0])
    host = first.host
    rows = PackedRows(host.positions < host.prompt_lengths[:, None] - 1, first, states={})
    if not len(rows.taken):
        return None
    nothing = Places(torch.zeros_like(rows.taken.mask), rows.device)
    output = run_model(model, first, nothing, layer, rows, with_logits=is_sharded(model))
    if output.logits is not None:
        rows.end = output.logits.sum()  # of nothing, which is 0
    return rows


def _check_same_prompts(batches: Sequence[ResponseBatch]) -> None:
    """Refuse rows of a group whose prompts differ."""
    first = batches[0].role(batches[0].roles[0]).host
    width = int(first.prompt_lengths.max())
    inside = first.positions[:width] < first.prompt_lengths[:, None]
    for batch in batches:
        prompt_lengths = batch.of_rows(first.prompt_lengths)
        same = torch.equal(batch.host.prompt_lengths, prompt_lengths) and torch.equal(
            batch.host.input_ids[:, :width].masked_fill(~batch.of_rows(inside), 0),
            batch.of_rows(first.input_ids[:, :width].masked_fill(~inside, 0)),
        )
        if not same:
            raise InputError(
                "the responses of a prompt have different prompts, which cannot be computed once "
                "for all: set layout=packed"
            )
