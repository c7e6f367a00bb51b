"""How varied generated responses are."""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import bleu_score

from lit_tidpo.errors import InputError


class _Responses(Metric):
    """Keeps generated responses, on all ranks, until the value is computed."""

    full_state_update = False
    is_differentiable = False
    tokens: list[Tensor]
    lengths: list[Tensor]
    prompts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("tokens", "lengths", "prompts"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, token_ids: Tensor, mask: Tensor, prompts: Tensor) -> None:
        """Add responses.

        Args:
            token_ids: Generated tokens, ``[N, T]``.
            mask: True at tokens of the response, False at padding and what else is left out,
                ``[N, T]`` bool.
            prompts: Number of the prompt that each responds to, ``[N]``.
        """
        if mask.dtype != torch.bool or mask.shape != token_ids.shape:
            raise InputError(
                f"mask: expected bool {tuple(token_ids.shape)}; got {mask.dtype} "
                f"{tuple(mask.shape)}: pass one value per token"
            )
        self.tokens.append(token_ids[mask])
        self.lengths.append(mask.sum(-1))
        self.prompts.append(prompts)

    def _responses(self) -> list[list[int]]:
        """All responses, each a list of token ids."""
        tokens, lengths = _joined(self.tokens), _joined(self.lengths)
        return [part.tolist() for part in torch.split(tokens, lengths.tolist())]


class SelfBLEU(_Responses):
    """Mean BLEU of each response against the others of its prompt (Texygen, arXiv 1802.01886).

    From 0 to 1; lower is more varied. Responses that are alone with their prompt do not count, and
    nor do empty ones. BLEU is not smoothed: it is 0 for a response that shares no n-gram of the
    greatest length with another.

    Args:
        n_gram: Longest n-grams that BLEU counts.

    Example:
        >>> metric = SelfBLEU(n_gram=2)
        >>> ids = torch.tensor([[1, 2, 3], [1, 2, 3]])
        >>> metric.update(ids, torch.ones_like(ids).bool(), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = False

    def __init__(self, n_gram: int = 4) -> None:
        super().__init__()
        if n_gram < 1:
            raise InputError(f"n_gram={n_gram}: expected 1 or more")
        self.n_gram = n_gram

    def compute(self) -> Tensor:
        """The mean over responses; NaN where none has another beside it."""
        groups: defaultdict[int, list[str]] = defaultdict(list)
        prompts = _joined(self.prompts).tolist()
        for prompt, ids in zip(prompts, self._responses(), strict=True):
            if ids:
                groups[prompt].append(" ".join(map(str, ids)))
        # Of references that are equally close in length the first counts: the shorter, as in NLTK.
        for texts in groups.values():
            texts.sort(key=lambda text: len(text.split()))
        scores = [
            bleu_score([text], [texts[:i] + texts[i + 1 :]], n_gram=self.n_gram)
            for texts in groups.values()
            if len(texts) > 1
            for i, text in enumerate(texts)
        ]
        return torch.stack(scores).mean() if scores else torch.tensor(torch.nan)


class DistinctNGrams(_Responses):
    """Share of different n-grams among all n-grams of all responses (Distinct-n, arXiv 1510.03055).

    From 0 to 1; higher is more varied. It falls as more is generated: compare equal amounts.

    Args:
        n: Tokens of an n-gram.

    Example:
        >>> metric = DistinctNGrams(2)
        >>> ids = torch.tensor([[1, 2, 1, 2]])
        >>> metric.update(ids, torch.ones_like(ids).bool(), torch.tensor([0]))
        >>> metric.compute()  # (1, 2), (2, 1), (1, 2)
        tensor(0.6667)
    """

    higher_is_better = True

    def __init__(self, n: int) -> None:
        super().__init__()
        if n < 1:
            raise InputError(f"n={n}: expected 1 or more")
        self.n = n

    def compute(self) -> Tensor:
        """The share; NaN where no response is as long as an n-gram."""
        grams = [
            tuple(ids[start : start + self.n])
            for ids in self._responses()
            for start in range(len(ids) - self.n + 1)
        ]
        return torch.tensor(len({*grams}) / len(grams) if grams else torch.nan)


class TokenEntropy(_Responses):
    """Entropy of the distribution of tokens over all responses, in nats: ``-sum_v p_v log p_v``.

    Higher is more varied.

    Example:
        >>> metric = TokenEntropy()
        >>> ids = torch.tensor([[1, 2, 1, 2]])
        >>> metric.update(ids, torch.ones_like(ids).bool(), torch.tensor([0]))
        >>> metric.compute()  # log 2
        tensor(0.6931)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The entropy; NaN where there is no token."""
        counts = torch.tensor([*Counter(_joined(self.tokens).tolist()).values()])
        if len(counts) == 0:
            return torch.tensor(torch.nan)
        # torch.distributions carries no types.
        return torch.distributions.Categorical(counts / counts.sum()).entropy()  # type: ignore


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """A state of the type ``cat``, which is one tensor after ranks were joined."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0, dtype=torch.long)
