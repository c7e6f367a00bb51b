"""How anchors are sampled, and for how long they are kept (TI-DPO, Eq. 13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_tidpo.errors import InputError, check_choice

Source = Literal["prompt", "chosen_prefix"]


@dataclass(frozen=True)
class AnchorOptions:
    """How anchors are sampled.

    Attributes:
        source: Sample from the ``prompt``, or continue a prefix of the chosen response
            (``chosen_prefix``).
        prefix_fraction: Share of the chosen response that ``chosen_prefix`` starts from.
        max_new_tokens: Sampled tokens at the most.
        temperature: Divides the logits before sampling.
        top_k: Sample among this many tokens only; 0 among all.
        top_p: Sample among the likeliest tokens of this total probability only.
        reuse_steps: Optimizer steps for which anchors are sampled in one go, by the policy of the
            first of them, and kept; 1 samples at each step by the policy of that step. With a
            loader of another library, only pairs that come again within them share an anchor.
        compiled: Compile the model for sampling, with CUDA graphs on a GPU. Each new number of rows
            or length compiles it again: worthwhile with ``reuse_steps`` and rows of like length.
    """

    source: Source = "prompt"
    prefix_fraction: float = 0.5
    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    reuse_steps: int = 1
    compiled: bool = False

    def __post_init__(self) -> None:
        check_choice("anchor.source", self.source, Source)
        if self.max_new_tokens < 1:
            raise InputError(f"anchor.max_new_tokens={self.max_new_tokens}: expected 1 or more")
        if self.reuse_steps < 1:
            raise InputError(f"anchor.reuse_steps={self.reuse_steps}: expected 1 or more")
        if self.top_k < 0:
            raise InputError(f"anchor.top_k={self.top_k}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"anchor.top_p={self.top_p}: expected more than 0, and 1 at the most")
        if not self.temperature > 0:
            raise InputError(f"anchor.temperature={self.temperature}: expected more than 0")
        if not 0 < self.prefix_fraction < 1:
            raise InputError(f"anchor.prefix_fraction={self.prefix_fraction}: expected 0 to 1")
        if self.source == "prompt" and self.prefix_fraction != 0.5:
            raise InputError("anchor.prefix_fraction has no effect with anchor.source='prompt'")

    def check_turns(self, several: bool) -> None:
        """Refuse prefixes of responses that hold turns of others.

        Args:
            several: Whether there may be such responses.

        Raises:
            InputError: If there may, and anchors go on from prefixes.
        """
        if several and self.source == "chosen_prefix":
            raise InputError(
                "anchor.source='chosen_prefix' cannot go on from responses of several turns "
                "(data.trained_turns=all), whose prefix may end in a turn of the user: set "
                "anchor.source=prompt"
            )


def window_batches(reuse_steps: int, accumulated: int) -> int:
    """Batches whose anchors are sampled in one go.

    Args:
        reuse_steps: Optimizer steps for which anchors are kept.
        accumulated: Batches of an optimizer step.
    """
    return reuse_steps * accumulated if reuse_steps > 1 else 1
