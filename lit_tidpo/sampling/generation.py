"""Sampling by the policy's own generation: anchors, by default (TI-DPO, Eq. 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_tidpo.devices.host_rows import to_device
from lit_tidpo.errors import InputError, explained
from lit_tidpo.models.packed_attention import plain_attention
from lit_tidpo.models.proofs import can_run, takes_left_padding
from lit_tidpo.models.quirks.generation import CacheKind, generation_cache, most_positions, pad_id
from lit_tidpo.models.quirks.modes import evaluating
from lit_tidpo.models.quirks.parts import inner_model
from lit_tidpo.models.sharding import is_sharded
from lit_tidpo.sampling.agreement import Forced, agrees
from lit_tidpo.sampling.anchor_options import AnchorOptions
from lit_tidpo.sampling.base import OnAnyRank, Sampler, context_lengths, sampled_batch
from lit_tidpo.sampling.by_length import in_order, of_each_length
from lit_tidpo.sampling.next_token import NextToken
from lit_tidpo.sampling.padding import left_padded, lengths_to_first_end, right_padded
from lit_tidpo.structures import ResponseBatch

_WAYS: tuple[tuple[bool, CacheKind], ...] = (
    (True, "static"),
    (True, "growing"),
    (False, "static"),
    (False, "growing"),
    (True, "none"),
    (False, "none"),
)
"""Whether contexts are padded, and the cache, the fastest first."""


class Generation(Sampler):
    """Sampling by the policy's own ``generate``, in eval mode with a key-value cache.

    Args:
        options: How to sample.
    """

    def __init__(self, options: AnchorOptions) -> None:
        self.options = options
        self._pads = True
        self._cache: CacheKind = "static"

    def prepare(self, policy: Any) -> None:
        """Find out how the policy's generation goes on as its plain passes do.

        Padding enters the state of some models, such as RWKV: their contexts are then generated
        from length by length. Some do not get along with a cache, or not in batches.

        Raises:
            InputError: If it does in no way.
        """
        if not can_run(policy):
            return
        name = type(inner_model(policy)).__name__
        reason = "its probabilities in generation are not those of its plain passes"
        takes_padding = takes_left_padding(policy)
        for self._pads, self._cache in _WAYS:
            if self._pads and not takes_padding:
                continue
            try:
                with explained("generation fails"):
                    same = agrees(policy, self._forced, self._pads)
            except InputError as error:
                reason = str(error)
                continue
            if not same:
                continue
            if not self._pads:
                rank_zero_info(f"Anchors of {name} are sampled length by length, without padding")
            if self._cache == "none":
                rank_zero_info(f"Anchors of {name} are sampled without a cache")
            return
        raise InputError(
            f"{name} cannot sample anchors of its own ({reason}): leave out losses that ask for "
            "them, such as triplet"
        )

    def _forced(self, policy: Any, ids: Tensor, lengths: Tensor, tokens: Forced) -> None:
        """Generate behind the first tokens of some rows what is given."""
        prompts, mask = left_padded(ids, lengths)
        self._generate(policy, prompts, mask, [], tokens, len(tokens.tokens))

    def sample(
        self,
        policy: Any,
        batch: ResponseBatch,
        count: int = 1,
        step: int = 0,
        on_any_rank: OnAnyRank | None = None,
    ) -> ResponseBatch:
        """Sample responses; see :meth:`Sampler.sample`.

        Raises:
            InputError: If a context leaves no room for a new token, or the model is not compiled.
        """
        first = batch.role(batch.roles[0])
        host = first.host
        contexts = context_lengths(host, self.options).repeat(count)
        if not self._pads and bool((contexts != contexts[0]).any()):
            return self._sample_by_length(policy, first, count, step, on_any_rank)
        prompts, mask = left_padded(host.input_ids.repeat(count, 1), contexts)
        width = prompts.shape[1]
        ends = self.ends(policy)
        room = _room(policy, width, self.options.max_new_tokens)
        sampled = NextToken(self.options)
        generated = self._generate(
            policy, prompts, mask, ends, sampled, room, on_any_rank, self.options.compiled
        )
        lengths = contexts + lengths_to_first_end(generated[:, width:], ends)
        known = dataclasses.replace(
            host,
            input_ids=right_padded(generated, width - contexts, lengths),
            prompt_lengths=host.prompt_lengths.repeat(count),
            lengths=lengths,
        )
        return sampled_batch(first, known, count)

    def _generate(
        self,
        policy: Any,
        prompts: Tensor,
        mask: Tensor,
        ends: list[int],
        next_token: Callable[[Tensor, Tensor], Tensor],
        room: int,
        on_any_rank: OnAnyRank | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Left-padded prompts and what follows, on the host, ``[N, W]``."""
        device = next(policy.parameters()).device
        positions = prompts.shape[1] + self.options.max_new_tokens
        if on_any_rank is None:
            positions = prompts.shape[1] + room
        with (
            torch.no_grad(),
            evaluating(policy),
            _plain_sampling(policy, ends),
            plain_attention(policy),
            _weights_in_bf16(policy),
            # Layers that are compiled for training would meet other shapes here.
            torch.compiler.set_stance("default" if compiled else "force_eager"),
        ):
            generated: Tensor = policy.generate(
                input_ids=to_device(prompts, device),
                attention_mask=to_device(mask, device),
                do_sample=False,
                logits_processor=[next_token],
                max_new_tokens=room,
                synced_gpus=on_any_rank is not None,
                **generation_cache(policy, positions, self._cache, compiled),
            )
        return generated.cpu()  # the one time that we wait for the device

    def _sample_by_length(
        self,
        policy: Any,
        first: ResponseBatch,
        count: int,
        step: int,
        on_any_rank: OnAnyRank | None,
    ) -> ResponseBatch:
        if on_any_rank is not None:
            raise InputError(
                f"{type(inner_model(policy)).__name__} generates length by length, which ranks "
                "that share a sharded model cannot do together: use strategy=ddp, or leave out "
                "losses that ask for anchors, such as triplet"
            )
        parts = of_each_length(first, context_lengths(first.host, self.options))
        return in_order(
            [(places, self.sample(policy, part, count, step)) for places, part in parts]
        )


@contextmanager
def _weights_in_bf16(policy: Any) -> Iterator[None]:
    """Where autocast computes in bf16, hold the weights so meanwhile, and do without it.

    It would cast them, and what goes into each layer, at every token anew. Sharded weights stay as
    they are, and those under fp16, in which sums of a large model can overflow.
    """
    kind = next(policy.parameters()).device.type
    in_bf16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    if not in_bf16 or is_sharded(policy):
        yield
        return
    # Not by exchanging their data: DDP's hooks hang on a weight's type, and would be lost.
    own = [
        (module, name, weight)
        for module in policy.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.dtype == torch.float32
    ]
    halves: dict[nn.Parameter, nn.Parameter] = {}
    try:
        for module, name, weight in own:
            if weight not in halves:
                halves[weight] = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
            setattr(module, name, halves[weight])
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        for module, name, weight in own:
            setattr(module, name, weight)


@contextmanager
def _plain_sampling(policy: Any, ends: list[int]) -> Iterator[None]:
    """Leave out what the model's own generation settings would add, such as a repetition penalty.

    An anchor is a sample of the policy as it is. Settings passed to ``generate`` are filled up from
    the model's, so those are exchanged.
    """
    from transformers import GenerationConfig

    # peft's wrapper hands its settings on to the model inside.
    inner = inner_model(policy)
    models = [policy] if inner is policy else [policy, inner]
    settings = [model.generation_config for model in models]
    policy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ends or None, pad_token_id=pad_id(policy)
    )
    try:
        yield
    finally:
        for model, own in zip(models, settings, strict=True):
            model.generation_config = own


def _room(policy: Any, context: int, wanted: int) -> int:
    limit = most_positions(policy)
    room = wanted if limit is None else min(wanted, limit - context)
    if room < 1:
        raise InputError(
            f"no room for an anchor: the longest context has {context} tokens and the policy takes "
            f"{limit}; lower data.max_prompt_length"
        )
    return room
