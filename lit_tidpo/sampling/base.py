"""What a sampler of responses implements."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_tidpo.devices.host_rows import HostRows, Rows, to_device
from lit_tidpo.models.quirks.generation import end_ids
from lit_tidpo.plugins.component import Component
from lit_tidpo.structures import ResponseBatch

if TYPE_CHECKING:
    from lit_tidpo.sampling.anchor_options import AnchorOptions

OnAnyRank = Callable[[bool], bool]
"""Whether something holds on any rank; all ranks have to ask together."""


def sampled_roles(count: int) -> tuple[str, ...]:
    """Roles of the sampled responses of a prompt: ``anchor``, or ``anchor_1`` and so on."""
    return ("anchor",) if count == 1 else tuple(f"anchor_{n}" for n in range(1, count + 1))


def sampled_batch(first: ResponseBatch, known: HostRows, count: int) -> ResponseBatch:
    """Sampled responses as a batch on the device of the data.

    Args:
        first: The rows of the data whose prompts were responded to, one for each prompt.
        known: Prompts and responses on the host, ``count`` for each prompt, role by role.
        count: Responses for each prompt.
    """
    device = first.input_ids.device
    known = dataclasses.replace(known, context=None)  # that of the data's responses
    return ResponseBatch(
        input_ids=to_device(known.input_ids, device),
        prompt_lengths=to_device(known.prompt_lengths, device),
        lengths=to_device(known.lengths, device),
        roles=sampled_roles(count),
        index=first.index,
        counted=first.counted,
        sampled=True,
    ).known_as(known)


def context_lengths(rows: Rows, options: AnchorOptions) -> Tensor:
    """Tokens of each row that a response goes on from, ``[N]``.

    Args:
        rows: Rows with the first response of each prompt, on the host.
        options: How to sample: from the prompts, or from prefixes of these responses.

    Raises:
        InputError: If such a prefix could end in what others say within a response.
    """
    if options.source == "prompt":
        return rows.prompt_lengths
    options.check_turns(rows.context is not None)
    responses = rows.lengths - rows.prompt_lengths
    # At least one token of the response stays to be sampled.
    prefix = (responses * options.prefix_fraction).long().clamp(max=responses - 1)
    return rows.prompt_lengths + prefix


class Sampler(Component, ABC):
    """Lets the policy write responses to the prompts of a batch.

    Sampling moves no gradient, mode or setting of the policy, and draws from torch's global
    generators alone: seed those to repeat it.

    Attributes:
        options: How to sample; the module sets its ``anchor``.
        further_ends: Tokens that end a response besides those of the policy's settings.
    """

    options: AnchorOptions
    further_ends: frozenset[int] = frozenset()

    def ends(self, policy: Any) -> list[int]:
        """All tokens that end a response."""
        return sorted({*end_ids(policy), *self.further_ends})

    def learn_ends(self, policy: Any, taught: frozenset[int]) -> None:
        """Let anchors end where the data's responses do, and say where settings lack that.

        Args:
            policy: The model.
            taught: Tokens that end the responses of the data.
        """
        lacking = taught - set(end_ids(policy))
        if not lacking:
            return
        self.further_ends = lacking
        rank_zero_warn(
            f"responses of the data end in the tokens {sorted(lacking)}, which the policy's "
            "generation settings do not end at: anchors end there, too, but an exported model "
            "would run on, unless its eos_token_id has them"
        )

    def prepare(self, policy: Any) -> None:  # most need nothing
        """Look at the policy before the first sample.

        Args:
            policy: The model.

        Raises:
            InputError: If it cannot be sampled from.
        """

    @abstractmethod
    def sample(
        self,
        policy: Any,
        batch: ResponseBatch,
        count: int = 1,
        step: int = 0,
        on_any_rank: OnAnyRank | None = None,
    ) -> ResponseBatch:
        """Sample responses.

        Args:
            policy: The model.
            batch: Rows of the data, whose prompts are responded to.
            count: Responses for each prompt.
            step: Optimizer step.
            on_any_rank: For models that ranks can only run together.

        Returns:
            Right-padded rows, ``count`` for each prompt, of the roles :func:`sampled_roles`; each
            ends with its first end-of-sequence token, if it has one.
        """
